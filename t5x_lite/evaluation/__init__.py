"""Validation losses and task metrics of checkpoints, during training and by `t5x_lite evaluate`."""
