"""One update and what surrounds it: schedule, normalization groups, reduction, checkpoints."""
