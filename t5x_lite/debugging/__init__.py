"""Finding where a run went wrong: comparing runs, replaying a step, probing activations."""
