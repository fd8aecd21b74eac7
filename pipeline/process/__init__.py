"""One process among the ranks: its world, its watchdog, requests to stop."""
