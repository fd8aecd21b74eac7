"""python -m pipeline.report puts the paper's tables beside our runs: the command is paper/report.py."""

from paper.command_lines import report_options
from pipeline.base.parsing import answer
from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("writing the report")
    answer(report_options)

from paper.report import main
from pipeline.base import command

if __name__ == "__main__":
    command.run(main, kept=True)
