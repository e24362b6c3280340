"""Self-supervised objectives: chunks of text become inputs and targets (NumPy only)."""
