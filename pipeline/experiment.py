"""python -m pipeline.experiment makes a table or figure of the paper: the command is paper/experiment.py."""

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("reading the runs of", "experiments")

from paper.experiment import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main, command.KEEPS)
