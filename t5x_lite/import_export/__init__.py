"""Convert run directories from Hugging Face models, and to Hugging Face, StableHLO, SavedModel."""
