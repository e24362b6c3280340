"""Weights in and out: other projects' files to our configurations and parameters, and back."""
