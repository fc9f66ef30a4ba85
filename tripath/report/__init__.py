"""Pages, pictures, traces and the terminal: what a run shows."""
