"""The paper's tables and figures as groups of runs: what each needs, how far it is, and its figures beside the paper's.

spec.py      what an experiment, a row and a run are    reading.py   configs/experiments/*.yaml, read strictly
state.py     how far a run is                           evidence.py  what a run's files prove: its figures
rows.py      the rows of a table, evaluated             runner.py    trains, resumes and tests what is missing
experiment.py, report.py, curves.py: the commands
"""
