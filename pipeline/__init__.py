"""What every worker runs: data, models, training, evaluation, tracking. The page to read first is train.py."""
