"""Do harm to what the product reads and needs, drawn from a seed, and count what comes of it: nothing may crash, hang or lie.

python -m tests.attack --short
python -m tests.attack --only images --tries 100 --seed 7
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.parsing import CommandParser, names_of, positive
from pipeline.base.tables import print_json, print_table
from tests.attack.attack import Attack, Outcome
from tests.attack.checkpoints import CHECKPOINTS
from tests.attack.cycles import CYCLES, RAY_CYCLES
from tests.attack.images import IMAGES
from tests.attack.mlflow import DAMAGED_FILES, MISBEHAVING
from tests.attack.mutants import MUTANTS
from tests.attack.outputs import OUTPUTS
from tests.attack.run_folders import RUN_FOLDERS
from tests.attack.slurm_answers import SLURM_ANSWERS
from tests.patience import set_patience

ATTACKS: tuple[Attack, ...] = (
    IMAGES,
    MUTANTS,
    CHECKPOINTS,
    RUN_FOLDERS,
    OUTPUTS,
    MISBEHAVING,
    DAMAGED_FILES,
    SLURM_ANSWERS,
    CYCLES,
    RAY_CYCLES,
)
SHOWN = 20  # failures of one attack in the terminal


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "Damages what the product reads, takes away what it needs, and counts what comes of it.",
        "python -m tests.attack --only images --tries 100 --seed 7",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--short", action="store_true", help="the number of tries that CI makes")
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("--only", type=names_of("attack", names), metavar="NAMES", help="of these: " + ", ".join(names))
    parser.add_argument("--tries", type=positive, help="of each attack, in place of its own numbers")
    parser.add_json_option()
    asked = parser.parse_args(argv)
    set_patience()
    rows, figures, failures = [], {}, 0
    for attack in ATTACKS:
        if asked.only and attack.name not in asked.only:
            continue
        tries = asked.tries or (attack.short if asked.short else attack.full)
        if not tries:  # too slow for the short round
            continue
        started, outcome = time.monotonic(), Outcome()
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            attack.run(Random(f"{asked.seed} {attack.name}"), tries, Path(folder), outcome)
        seconds = time.monotonic() - started
        for sentence in outcome.failures[:SHOWN]:
            print(f"{attack.name}: {sentence}")
        failures += len(outcome.failures)
        counts = ", ".join(f"{count:,} {what}" for what, count in outcome.counts.most_common())
        rows.append((attack.what, f"{outcome.tries:,}", len(outcome.failures), counts, f"{seconds:.0f}"))
        figures[attack.name] = {"tries": outcome.tries, "failures": outcome.failures, "counts": dict(outcome.counts)}
    print_table(
        f"attacks, seed {asked.seed}", ("what was done", "tries", "failures", "what came of it", "seconds"), rows
    )
    if asked.json:
        print_json({"seed": asked.seed, "attacks": figures})
    if failures:
        raise UserError(f"{failures} tries ended otherwise than they may (above): mend what they found")
    return 0


if __name__ == "__main__":
    command.run(main)
