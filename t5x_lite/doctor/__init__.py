"""Preflight checks of all hosts of a run, before the first step."""
