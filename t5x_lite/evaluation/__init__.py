"""Metrics of the study's tasks, and what is made of decoded text before they are computed."""
