"""Grids of small runs that repeat a study: specification, stages, runner, scores."""
