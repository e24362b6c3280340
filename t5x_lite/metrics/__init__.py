"""Task metrics and postprocessors, and published results to compare with."""
