"""What the commands of this package take, those that train aside (pipeline/run/options.py)."""
