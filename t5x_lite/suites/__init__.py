"""The data sets of the T5 and mT5 papers as seqio tasks and mixtures, under their published names.

Everything here is a table. A declaration (`study.Study`, `multilingual.Multilingual`) registers its
tables with seqio; the data sets themselves are looked for when a task is first read.
"""
