"""One process among the ranks: its world, its watchdog, and requests to stop."""
