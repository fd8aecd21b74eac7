"""What every launcher shares: its command line, the work of a rank, the ranks of one machine, failures of ranks."""
