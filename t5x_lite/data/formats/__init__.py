"""Text formats: one example of a data set in, what a text-to-text model reads and writes out.

Each function takes a flat mapping from field names (nested ones joined by "/") to text, numbers or
lists of them, and returns the text examples made of it: mostly one, none where the example cannot
be used, several where it has several answers. What stands beside "inputs" and "targets" is for
evaluation. The formats are those of Raffel et al. 2020 (T5), appendix D, as its code has them.
"""
