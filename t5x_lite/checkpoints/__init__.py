"""Checkpoints and run directories: saving, retention, restoring, run records."""
