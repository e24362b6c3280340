"""From documents to batches: corpora, vocabularies, tasks, token stores and the example stream."""
