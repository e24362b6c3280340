"""Finished and unfinished runs as a page for people: read from model directories, never changed."""
