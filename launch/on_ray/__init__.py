"""What only Ray Train needs."""
