"""Generation, scoring and embedding with a trained model, in batches or behind a web page."""
