"""The process of one stage: python -m bench.gpu.child MODULE CHECK, where MODULE has `run(check)` and CHECK is its JSON."""

from __future__ import annotations

import faulthandler
import importlib
import sys

from bench.gpu.check import Check


def main(module: str, check: str) -> None:
    faulthandler.enable()  # a decoder that crashes leaves its stack in the log
    importlib.import_module(module).run(Check.from_json(check))


if __name__ == "__main__":
    main(*sys.argv[1:])
