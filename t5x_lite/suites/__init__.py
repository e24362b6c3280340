"""The data sets of the T5 and mT5 papers as seqio tasks and mixtures, under their published names.

All modules here are tables. A task provider (`t5.Study`, `mt5.Multilingual`,
`rank_classification.StudyOptions`) registers its tables with seqio. A data set is opened only when
a task is first read.
"""
