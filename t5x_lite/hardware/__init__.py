"""Accelerators: chips, slice topologies, XLA options."""
