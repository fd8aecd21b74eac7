"""python -m pipeline.experiment makes a table or figure of the paper: the command is paper/experiment.py."""

from paper.experiment import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main)
