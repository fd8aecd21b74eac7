"""Three launchers of the same pipeline.train.train: processes on this machine, SLURM by submitit, Ray Train."""
