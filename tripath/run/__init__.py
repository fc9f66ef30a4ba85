"""One run: compile, run paths, compare; results by content."""
