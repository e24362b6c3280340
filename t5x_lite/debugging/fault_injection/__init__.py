"""Training under injected faults, to prove that nothing is lost."""
