"""What the commands of this package take, but for trainings (pipeline/run/options.py) and tracking (its __main__.py).

Imports nothing that takes seconds, so that --help and mistyped options are answered at once.
"""
