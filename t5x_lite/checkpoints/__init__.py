"""Checkpoints and run directories: saving, retention, restoring and what a run records of itself."""
