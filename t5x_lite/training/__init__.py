"""What turns (state, batch) into (state, metrics): losses, schedules, optimizers and the step."""
