"""Self-supervised objectives: pieces of text become inputs and targets (NumPy only)."""
