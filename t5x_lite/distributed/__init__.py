"""The processes of a run: start-up, heartbeats, rendezvous, preemption, child processes."""
