"""Three doors to the same pipeline.train.main: processes here, SLURM by submitit, Ray Train."""
