"""Three doors to the same pipeline.train.train: processes here, SLURM by submitit, Ray Train."""
