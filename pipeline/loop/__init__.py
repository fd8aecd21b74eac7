"""The loop over updates: the trainer, its progress and its validation."""
