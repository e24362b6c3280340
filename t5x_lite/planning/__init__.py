"""What a training step costs before anyone pays for it: FLOPs, chips, compiled programs."""
