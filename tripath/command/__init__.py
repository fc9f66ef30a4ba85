"""The command line: Hydra's configurations become experiments."""
