"""Three launchers of the same pipeline.train.main: processes on this machine, SLURM by submitit, Ray Train."""
