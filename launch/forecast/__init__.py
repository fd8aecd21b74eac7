"""How long a training will take on how many nodes, and what was measured for that."""
