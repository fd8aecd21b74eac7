"""sbatch's own options, which a site or a user hands on to it: their spellings, and those that the launcher sets itself.

On a command line each is `--sbatch.KEY VALUE`; the words of WORDS are taken without `sbatch.` too. In the site's file they
are the mapping `sbatch`. What sbatch does not know, or its site does not have, sbatch itself refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.base.command import UserError

OPTION, PREFIX = "--sbatch", "--sbatch."
Value = str | int | bool  # true: an option without a value; false: not this option, though the site's file has it
Options = Mapping[str, Value]

# Words of sbatch that mean nothing else here.
_NAMES = (
    *("gres", "gpus-per-task", "gpu-bind", "gpu-freq", "mem-per-cpu", "mem-per-gpu", "tmp", "threads-per-core", "hint"),
    *(
        "exclude",
        "nodelist",
        "reservation",
        "exclusive",
        "contiguous",
        "prefer",
        "switches",
        "distribution",
        "licenses",
    ),
    *("dependency", "begin", "deadline", "nice", "hold", "priority", "mail-type", "mail-user", "comment", "wckey"),
)
_LETTERS = {"-x": "exclude", "-w": "nodelist", "-d": "dependency", "-L": "licenses", "-H": "hold"}
WORDS = {**{f"--{name}": name for name in _NAMES}, **_LETTERS}

# Set by the launcher, or at odds with what it does: what to give in place of it.
_RANKS = "--nodes, --gpus-per-node and --tasks-per-node, whose ranks follow from them"
_LOGS = "nothing: logs go into slurm/ of the run folder"
_ANSWER = "nothing: the launcher needs sbatch's answer"
TAKEN = {
    **dict.fromkeys(("ntasks", "gpus", "ntasks-per-gpu"), _RANKS),
    **dict.fromkeys(("output", "error", "open-mode"), _LOGS),
    **dict.fromkeys(("parsable", "quiet", "help", "usage", "version"), _ANSWER),
    **dict.fromkeys(("requeue", "no-requeue"), "--requeue-limit, how often the job starts again after crashes"),
    **dict.fromkeys(("wrap", "chdir"), "nothing: the job runs the launcher's script, from this folder"),
    "nodes": "--nodes",
    "ntasks-per-node": "--tasks-per-node",
    "cpus-per-task": "--cpus-per-gpu",
    "cpus-per-gpu": "--cpus-per-gpu",
    "gpus-per-node": "--gpus-per-node",
    "mem": "--mem-gb",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "time": "--time",
    "signal": "--signal-delay, the seconds that a job gets for saving",
    "job-name": "--name",
    "array": "each run by its own command",
    "kill-on-invalid-dep": "nothing: a job that can never start is removed where this launcher made it wait",
    "wait": "python launch/status.py RUN --follow behind it",
    "test-only": "--dry-run",
}  # fmt: skip
_KEY, _FLAG = re.compile(r"[A-Za-z][A-Za-z0-9-]+"), re.compile(r"-(?!\d)")
# One of the GPUs in --gres: gpu, gpu:4, gpu:a100, gpu:a100:4, also with the sockets that it is to be on.
_GPU = re.compile(r"(?P<kind>(?:gres/)?gpu(?:[:=][A-Za-z][\w.-]*)?)(?:[:=](?P<count>\d+))?(?P<sockets>\(S:.*\))?")


def spelled(words: Sequence[str]) -> list[str]:
    """A launcher's words with each option for sbatch as its parser takes it: `--sbatch.gres X` and `--gres X` as
    `--sbatch=gres=X`, and `--exclusive`, behind which stands no value, as `--sbatch=exclusive`."""
    found: list[str] = []
    waiting = list(words)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        key = name.removeprefix(PREFIX) if name.startswith(PREFIX) else WORDS.get(name)
        if key is None:
            found.append(name + equals + value)
            continue
        if not equals and waiting and not _FLAG.match(waiting[0]):
            equals, value = "=", waiting.pop(0)
        found.append(f"{OPTION}={key}{equals}{value}")
    return found


def read(given: Sequence[str]) -> dict[str, Value]:
    """The options of a command line, each `KEY=VALUE`, or `KEY` where it has no value. Raises UserError."""
    pairs = [one.partition("=") for one in given]
    return canonical(
        {key: {"true": True, "false": False}.get(value, value) if equals else True for key, equals, value in pairs}
    )


def canonical(options: Options) -> dict[str, Value]:
    """The options with sbatch's own spelling of their names. Raises UserError for what cannot be handed on."""
    found: dict[str, Value] = {}
    for given, value in options.items():
        key = given.removeprefix("--").replace("_", "-")
        if key in TAKEN:
            raise UserError(f"sbatch's {key} is not handed on, because the launcher sets it: give {TAKEN[key]}")
        if not _KEY.fullmatch(key):
            raise UserError(f"'{given}' is no option of sbatch: give its long name, as in {PREFIX}reservation school")
        if not isinstance(value, bool) and not (str(value) and str(value).isprintable()):
            raise UserError(f"{PREFIX}{key} is {value!r}: give one line of text")
        found[key] = value
    return found


def given(options: Options) -> dict[str, Value]:
    """Those that sbatch is to get: without the ones that are false."""
    return {key: value for key, value in options.items() if value is not False}


def lines(options: Options) -> dict[str, Value]:
    """Those that sbatch is to get, as submitit writes them into the script: sbatch reads a backslash as the shell does outside
    of quotes, also where it stands in quotes."""
    return {
        key: value.replace("\\", "\\\\") if isinstance(value, str) else value for key, value in given(options).items()
    }


def gpus_in(options: Options) -> int | None:
    """How many GPUs of each node `gres` asks for; None where it asks for none."""
    counts = [int(gpu["count"] or 1) for part in _parts(options) if (gpu := _GPU.fullmatch(part))]
    return sum(counts) if counts else None


def without_gpus(options: Options) -> dict[str, Value]:
    """The options without the GPUs in `gres`."""
    others = [part for part in _parts(options) if not _GPU.fullmatch(part)]
    return _with_gres(options, others)


def with_gpus_of(options: Options, others: Options) -> dict[str, Value]:
    """The options with the GPUs in the `gres` of others, too."""
    gpus = [part for part in _parts(others) if _GPU.fullmatch(part)]
    return _with_gres(options, [*gpus, *_parts(options)])


def with_one_gpu(options: Options) -> dict[str, Value]:
    """The options with one GPU, of the first kind, where `gres` asks for several."""
    first = next((gpu for part in _parts(options) if (gpu := _GPU.fullmatch(part))), None)
    if first is None or (gpus_in(options) or 0) <= 1:
        return dict(options)
    others = [part for part in _parts(options) if not _GPU.fullmatch(part)]
    return _with_gres(options, [f"{first['kind']}:1{first['sockets'] or ''}", *others])


def _parts(options: Options) -> list[str]:
    gres = options.get("gres", False)
    return [] if isinstance(gres, bool) else str(gres).split(",")


def _with_gres(options: Options, parts: Sequence[str]) -> dict[str, Value]:
    others = {key: value for key, value in options.items() if key != "gres"}
    return {**others, "gres": ",".join(parts)} if parts else others
