"""One file per command; the only place that knows every other part."""
