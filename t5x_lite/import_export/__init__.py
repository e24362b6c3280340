"""Models in and out of run directories: Hugging Face, StableHLO, SavedModel."""
