"""What must come out of a check of this project on an H100: the claims with their floors and aims, and what was measured.

Each claim reads the lines of the results that answer it. Where none does, it is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]
AS_CONFIGURED = ("GPU against CPU", "GPU against CPU, evaluation")  # and not with plain upsampling
MINUTES_OF_64K = 64_000 * 128 / 60  # divided by images/s


@dataclass(frozen=True)
class Measured:
    """The lines of a check, to look values up in."""

    lines: Sequence[Line]

    def all(self, stage: str, what: str | None = None, **values: Any) -> list[Line]:
        """Return the sound lines of a stage with this `what` (None: any) and these values."""
        return [
            line
            for line in self.lines
            if line["stage"] == stage
            and what in (None, line["what"])
            and "left_out" not in line
            and all(line.get(name) == value for name, value in values.items())
        ]

    def last(self, stage: str, what: str | None, value: str, **values: Any) -> Any:
        """Return `value` of the last such line that has it, or None."""
        found = [line[value] for line in self.all(stage, what, **values) if line.get(value) is not None]
        return found[-1] if found else None

    def rate(self, what: str, rows: int, arch: str = "resnet50") -> float | None:
        """Return images/s of a way to train on synthetic images."""
        for stage in ("step", "deep", "compiling"):
            if (found := self.last(stage, what, "images_per_second", rows=rows, arch=arch)) is not None:
                return float(found)
        return None

    def best(self, rows: int, arch: str = "resnet50") -> float | None:
        """Return the faster of our compiled ways: normalization groups of 32 images, or one."""
        rates = [self.rate(what, rows, arch) for what in ("ours compiled", "ours compiled, one group")]
        return max((rate for rate in rates if rate), default=None)


Answer = Callable[[Measured], str | None]


def gpu_tests(found: Measured) -> str | None:
    outcomes = [line["outcome"] for line in found.all("tests") if "outcome" in line]
    counts = {one: outcomes.count(one) for one in ("passed", "failed", "error", "skipped")}
    return ", ".join(f"{count} {one}" for one, count in counts.items() if count) or None


def pixels(found: Measured) -> str | None:
    lines = [line for line in found.all("decoding") if line["what"] in AS_CONFIGURED and "psnr_least" in line]
    rungs = sorted({line["rung"] for line in lines})
    return _joined(
        f"{rung}: {min(line['psnr_least'] for line in lines if line['rung'] == rung):.1f} dB, at most "
        f"{max(line['largest'] for line in lines if line['rung'] == rung):.1f} grey levels"
        for rung in rungs
    )


def independence(found: Measured) -> str | None:
    return _joined(
        f"{line['rung']}, load {line['hw_decoder_load']}: {_equal(line)}"
        for line in found.all("decoding", independence=True)
    )


def bits(found: Measured) -> str | None:
    return _joined(
        f"{line['arch']}, {line['what']}{'' if line['deterministic'] else ' (deterministic: false)'}: {_equal(line)}"
        for line in found.all("resume")
        if "equal_bits" in line
    )


def loader(found: Measured) -> str | None:
    rates = [line["value"] for line in found.all("loader", "images/s")]
    tuned = found.last("tuning", "tuned against the grid", "ratio")
    return _joined([*([f"{max(rates):,.0f}"] if rates else []), *([f"tuned / best {tuned:.2f}"] if tuned else [])])


def resnet50(found: Measured) -> str | None:
    rate = found.best(256)
    shares = [line.get("peak_share") for line in found.all("step", rows=256) if line.get("images_per_second") == rate]
    return (
        None
        if rate is None
        else f"{rate:,.0f}" + _joined(f"; {100 * share:.1f}% of the peak" for share in shares if share)
    )


def against_others(found: Measured) -> str | None:
    ours = found.best(256)
    others = {"torchvision": "torchvision AMP NCHW eager", "timm": "timm AMP channels_last compiled"}
    rates = {name: found.rate(what, 256) for name, what in others.items()}
    return _joined(f"{name} {ours / rate:.2f}" for name, rate in rates.items() if ours and rate)


def deep(found: Measured) -> str | None:
    rates = {arch: found.best(256, arch) for arch in ("resnet101", "resnet152")}
    return _joined(f"{arch} {rate:,.0f}" for arch, rate in rates.items() if rate)


def few_rows(found: Measured) -> str | None:
    ways = ("ours eager", "ours CUDA graph", "ours compiled", "ours compiled, CUDA graph")
    parts = []
    for rows in (32, 8):
        times = {way: 1000 * rows / rate for way in ways if (rate := found.rate(way, rows))}
        kernels = found.last("step", "kernels of ours compiled", "kernel_ms", rows=rows)
        words = [f"{way.removeprefix('ours ')} {ms:.2f}" for way, ms in times.items()]
        words += [f"kernels of compiled {kernels:.2f}"] if kernels else []
        parts += [f"{rows} rows: {', '.join(words)}"] if words else []
    return "; ".join(parts) or None


def end_to_end(found: Measured) -> str | None:
    return _joined(
        f"{line['case']}, {line['decode_on']}: {line['ratio']:.3f}" for line in found.all("end_to_end", "images/s")
    )


def checkpoint(found: Measured) -> str | None:
    share = found.last("end_to_end", "checkpoint, seconds", "stall_share")
    return None if share is None else f"{share:.2f}"


def resnet20(found: Measured) -> str | None:
    rates = {
        name: found.last("cifar", "images/s", "value", compiled=True, graph=graph)
        for graph, name in ((True, "with the graph"), (False, "without"))
    }
    parts = [f"{name} {rate:,.0f} ({MINUTES_OF_64K / rate:.1f} min)" for name, rate in rates.items() if rate]
    for line in found.all("full_cifar", "run", ended=True):
        error = line.get("val/top1_error")
        parts.append(f"to the end in {line['seconds'] / 60:.1f} min" + (f", {error:.2f}%" if error is not None else ""))
    return _joined(parts)


def table6(found: Measured) -> str | None:
    return _joined(
        f"{line['name']} {line['iteration']}"
        + (f", {error:.2f}%" if (error := line.get("val/top1_error")) is not None else "")
        for line in found.all("table6", "run")
    )


def region_decoding(found: Measured) -> str | None:
    lines = [line for line in found.all("decoding") if line["what"].startswith("probe of")]
    return _joined(
        f"{line['what'].removeprefix('probe of ')}: {line.get('failed') or line['outcome']}" for line in lines
    )


def start_up(found: Measured) -> str | None:
    return _joined(
        f"{line['what'].removeprefix('ours compiled, ')}: {line['start_up_seconds']:.0f} s, {line['graphs']} graphs, "
        f"{line['ms_per_update']:.2f} ms an update"
        for line in found.all("compiling")
        if "start_up_seconds" in line
    )


def compile_by(found: Measured) -> str | None:
    ways = ("ours compiled", "ours compiled, compile_by stages")
    rates = [(rows, *(found.rate(way, rows) for way in ways)) for rows in (256, 32)]
    return _joined(f"{rows} rows {stages / net:.2f}" for rows, net, stages in rates if net and stages)


def benchmark(found: Measured) -> str | None:
    pairs = (("ours eager, one group", "one group"), ("ours eager", "groups of 32"))
    rates = [(name, found.rate(what, 256), found.rate(f"{what}, cudnn_benchmark", 256)) for what, name in pairs]
    return _joined(f"{name} {with_it / without:.2f}" for name, without, with_it in rates if without and with_it)


CLAIMS: tuple[tuple[str, str, str, Answer], ...] = (
    ("tests marked gpu", "green", "", gpu_tests),
    ("GPU graphs against the CPU's: least PSNR, largest difference", "one grey level", "", pixels),
    ("140 images at once = 7 x 20, by rung and hardware share", "equal bits at the default", "", independence),
    ("same command twice; killed and continued; CUDA graph (`deterministic: true`)", "equal bits", "", bits),
    ("loader alone, images/s: best of the grid; the tuner's choice", "0.95 of the best", "8,000", loader),
    ("ResNet-50, bf16, compiled, synthetic: images/s, share of the bf16 peak", "3,200", "5,013", resnet50),
    ("ours / torchvision AMP NCHW; ours / timm compiled channels_last", "1.6; 1.0", "2.2; 1.15", against_others),
    ("ResNet-101, ResNet-152: images/s", "measured", "", deep),
    ("a rank of 32 and of 8 rows: ms an update", "graph 1.5x eager", "within 10% of the kernels' time", few_rows),
    ("compiling from a cold cache", "measured", "", start_up),
    ("`compile_by` stages (configs/imagenet.yaml) / net, ResNet-50 on one GPU", "0.97", "1", compile_by),
    ("`cudnn_benchmark` / without", "measured", "", benchmark),
    ("JPEG shards end to end / the slower of step and loader", "0.95", "0.99", end_to_end),
    ("checkpoint stall / update", "1", "0.1", checkpoint),
    ("ResNet-20 on CIFAR-10: images/s; 64,000 iterations, test error", "10 min", "3 min, within 0.5 of 8.75", resnet20),
    ("other nets of Table 6: iterations, test error", "", "Table 6 within 1 H100-hour", table6),
    ("DALI's region decoding on nvImageCodec 0.9 (nvImageCodec#55)", "known", "", region_decoding),
)


def rows(lines: Sequence[Line]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (what, floor, aim, measured) of each claim."""
    found = Measured(lines)
    for what, floor, aim, answer in CLAIMS:
        yield what, floor, aim, answer(found) or "not measured"


def _equal(line: Line) -> str:
    return "equal" if line["equal_bits"] else "not equal"


def _joined(parts: Any) -> str:
    return "; ".join(parts)
