"""Fault injection: train while faults are injected, and verify that the result is bit-exact."""
