"""Jobs and paths as tasks on a Ray cluster."""
