"""Text formats: how an example of a data set becomes the text that a model reads and writes.

Each function takes a flat mapping from field names (nested ones joined by "/") to text, numbers or
lists of them. It returns text examples: usually one, none if the example cannot be used, several if
it has several answers. Fields beside "inputs" and "targets" are for evaluation. The formats are
those of the T5 library (Raffel et al. 2020, appendix D).
"""
