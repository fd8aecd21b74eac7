"""What every launcher shares: the work of a rank, a group of ranks on one machine, how a rank's failure is told."""
