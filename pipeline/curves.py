"""python -m pipeline.curves lays the curves of runs over one another: the command is paper/curves.py."""

from paper.command_lines import curves_options
from pipeline.base.parsing import answer
from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("drawing the curves of", "runs")
    answer(curves_options)

from paper.curves import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main, kept=True)
