"""From a model that scores the next token to text; it is given functions, never a model."""
