"""Records of runs for a tracking server: as data first, then in MLflow."""
