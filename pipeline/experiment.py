"""python -m pipeline.experiment makes a table or figure of the paper: the command is paper/experiment.py."""

import sys

from paper.command_lines import experiment_options, split_words
from pipeline.base.parsing import answer
from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("reading the runs of", "experiments")
    answer(experiment_options, split_words(sys.argv[1:])[0])

from paper.experiment import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main, command.KEEPS, kept=True)
