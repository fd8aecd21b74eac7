"""The stages of the check, a file each: `run(check)` measures."""
