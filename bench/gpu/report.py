"""The summary and the tables of a check, from its lines of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import claims

Line = dict[str, Any]
HEADS = ("stage", "what", "dry")


def read(files: Iterable[Path]) -> list[Line]:
    """Return the lines of these files of results, in their order."""
    return [
        json.loads(text) for file in files if file.exists() for text in file.read_text(encoding="utf-8").splitlines()
    ]


def write(out: Path, files: Sequence[Path]) -> list[Line]:
    """Write OUT/summary.txt and OUT/table.md of these files of results; return their lines."""
    lines = read(files)
    (out / "summary.txt").write_text(summary(lines), encoding="utf-8")
    (out / "table.md").write_text(tables(lines), encoding="utf-8")
    return lines


def summary(lines: Iterable[Line]) -> str:
    """Return a line of text for each measurement."""
    texts = []
    for line in lines:
        values = {name: value for name, value in line.items() if name not in HEADS and value is not None}
        words = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in values.items())
        verdict = "FAILED " if "failed" in line else ""
        texts.append(f"{line['stage']:12s} {verdict}{line['what']}: {words}\n")
    return "".join(texts)


def tables(lines: Sequence[Line]) -> str:
    """Return Markdown: the claims, the ways to train, the loader's settings, and what was not measured."""
    parts = [
        table("What must come out", ("what", "floor", "aim", "measured"), claims.rows(lines)),
        table(
            "Updates on synthetic images",
            (
                "net",
                "way",
                "rows",
                "images/s",
                "ms",
                "of the peak",
                "GB",
                "host's share",
                "start-up, s",
                "graphs",
            ),
            (_way(line) for line in lines if "ms_per_update" in line),
        ),
        table(
            "Time of one update on the device",
            ("net", "way", "rows", "kernels", "ms", "shares"),
            (_kernels(line) for line in lines if "kernel_ms" in line),
        ),
        table(
            "Loader",
            ("setting", "images/s", "CPU-ms/image", "JPEG engines, %"),
            (_setting(line) for line in lines if line["stage"] == "loader" and "value" in line),
        ),
        table(
            "Pixels",
            ("what", "of", "equal bits", "images equal", "least PSNR, dB", "largest difference"),
            (_pixels(line) for line in lines if "psnr_least" in line),
        ),
        table(
            "Not measured",
            ("stage", "what", "why"),
            (
                (line["stage"], line["what"], cell(line.get("failed") or line["left_out"]))
                for line in lines
                if "failed" in line or "left_out" in line
            ),
        ),
    ]
    return "\n".join([head(lines), *(part for part in parts if part)])


def head(lines: Sequence[Line]) -> str:
    """Return what the tables were measured with: the GPU, and versions."""
    if any(line.get("dry") for line in lines):
        return "Of a dry run: its figures mean nothing.\n"
    found = {line["what"]: line for line in lines if line["stage"] == "environment"}
    device, versions = found.get("device", {}), found.get("versions", {})
    packages = [f"{name} {version}" for name, version in versions.get("packages", {}).items()]
    facts = [device.get("name"), f"{versions['cores']} cores" if versions else None, *packages]
    return ", ".join(str(fact) for fact in facts if fact) + "\n"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table under a heading, or nothing where there are no rows."""
    texts = [f"| {' | '.join(map(str, row))} |" for row in rows]
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([f"### {title}", "", *head, *texts, ""]) if texts else ""


def _way(line: Line) -> Sequence[object]:
    peak, memory = line.get("peak_share"), line.get("memory_gb")
    return (
        line["arch"],
        line["what"],
        line["rows"],
        shown(line["images_per_second"]),
        shown(line["ms_per_update"]),
        "" if peak is None else f"{100 * peak:.1f}%",
        "" if memory is None else f"{memory:.1f}",
        f"{line['host_share']:.2f}",
        f"{line['start_up_seconds']:.1f}",
        line["graphs"] or "",
    )


def _kernels(line: Line) -> Sequence[object]:
    shares = ", ".join(
        f"{part} {100 * ms / line['kernel_ms']:.0f}%" for part, ms in line["parts"].items() if line["kernel_ms"] and ms
    )
    way = line["what"].removeprefix("kernels of ")
    return line["arch"], way, line["rows"], line["kernels"], f"{line['kernel_ms']:.2f}", shares


def _setting(line: Line) -> Sequence[object]:
    known = (*HEADS, "value", "cpu_ms_per_image", "jpeg_engine_percent", "device_gb")
    setting = ", ".join(f"{name} {value}" for name, value in line.items() if name not in known)
    engines = line["jpeg_engine_percent"]
    return setting, shown(line["value"]), f"{line['cpu_ms_per_image']:.2f}", "" if engines is None else f"{engines:.0f}"


def _pixels(line: Line) -> Sequence[object]:
    facts = [str(line[name]) for name in ("rung", "view") if name in line]
    facts += [f"hw_decoder_load {line['hw_decoder_load']}"] if "hw_decoder_load" in line else []
    equal = "yes" if line["equal_bits"] else "no"
    counts = f"{line['images_equal']} of {line['images']}"
    return line["what"], ", ".join(facts), equal, counts, f"{line['psnr_least']:.1f}", f"{line['largest']:.1f}"


def shown(value: object) -> str:
    """Return a value for people: floats with four digits, or none behind the point from 1000 on."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def cell(text: object) -> str:
    """Return text that a cell of a Markdown table can hold."""
    return " ".join(str(text).split()).replace("|", "\\|")[:200]
