"""Noise functions: what turns a piece of text into a pair of inputs and targets (NumPy only)."""
