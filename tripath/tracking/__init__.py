"""What a tracking server is told: as data first, then in MLflow."""
