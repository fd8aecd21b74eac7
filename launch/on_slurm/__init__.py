"""What only SLURM needs: allocation, submission, the job on its nodes and its end."""
