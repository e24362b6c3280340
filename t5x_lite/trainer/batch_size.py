"""The batch size of recipes that give it in tokens, as T5's do."""

from collections.abc import Mapping

from t5x_lite.errors import ConfigError


def rows_of_tokens(tokens: int, feature_lengths: Mapping[str, int]) -> int:
    """Return the batch size in rows, from its tokens and the longer of inputs and targets.

    This is the rule of Mesh TensorFlow (`tokens_per_batch`), with which T5 was trained.

    >>> rows_of_tokens(65_536, {"inputs": 512, "targets": 84})
    128

    Args:
        tokens: Tokens of a batch, padding included.
        feature_lengths: The length of each feature in tokens.

    Returns:
        The number of rows, rounded down.

    Raises:
        ConfigError: A row is longer than the batch.
    """
    longest = max(feature_lengths.values())
    if tokens < longest:
        raise ConfigError(
            f"a batch of {tokens:,} tokens is shorter than a row of {longest:,}; expected "
            f"{longest:,} or more",
            "BATCH_TOKENS",
            "TASK_FEATURE_LENGTHS",
        )
    return tokens // longest
