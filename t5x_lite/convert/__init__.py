"""Conversion of configurations and weights between Hugging Face's formats and ours."""
