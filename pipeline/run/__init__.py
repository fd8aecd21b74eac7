"""What a run is: its config, its folder and the names of the files in it."""
