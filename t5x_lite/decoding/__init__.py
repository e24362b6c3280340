"""Decoding from a function that computes next-token logits; independent of the model."""
