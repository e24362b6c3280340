"""Debugging of runs: compare two runs, replay a step, probe activations, inject faults."""
