"""python -m pipeline.report puts the paper's tables beside our runs: the command is paper/report.py."""

from paper.report import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main)
