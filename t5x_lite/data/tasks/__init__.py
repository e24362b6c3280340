"""seqio tasks and mixtures: providers, preprocessors, mixing rates, text formats."""
