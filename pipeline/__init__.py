"""What every worker runs: data, models, training, evaluation, tracking. The page to read first is train.py."""

import os

# How long (in loops, here about 50 microseconds) an OpenMP thread that waits keeps its core busy; libgomp reads it when
# torch loads it. Its own 300,000 are for a program alone on its cores: beside another rank's threads, or a loader's, they
# take the cores from those that are waited for (docs/performance.md: a third of the images per second of two ranks).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
