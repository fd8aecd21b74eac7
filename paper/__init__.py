"""The paper's tables and figures as groups of runs: what they need, how far they are, what is still to be done.

definitions.py  configs/experiments/*.yaml, strictly read      evidence.py  the row's figures, from the runs' own files
state.py        how far one run is, from its folder alone      runner.py    launches, continues and evaluates
"""
