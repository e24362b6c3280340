"""The training run: the loop and everything that watches it."""
