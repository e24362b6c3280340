"""Vocabularies and tokenizers, and how text is encoded and decoded."""
