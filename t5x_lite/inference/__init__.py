"""Generation, scoring and embedding with a trained model, for files of texts or on a web page."""
