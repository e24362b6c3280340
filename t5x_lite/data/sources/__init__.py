"""Where raw examples come from: JSON lines, TSV and text files, TFDS, the embedded corpus."""
