"""A batch told in tokens, as T5's recipes are."""

from collections.abc import Mapping

from t5x_lite.errors import ConfigError


def rows_of_tokens(tokens: int, feature_lengths: Mapping[str, int]) -> int:
    """How many rows hold so many tokens of the longer of inputs and targets (Mesh TensorFlow's).

    >>> rows_of_tokens(65_536, {"inputs": 512, "targets": 84})
    128
    """
    longest = max(feature_lengths.values())
    if tokens < longest:
        raise ConfigError(
            f"a batch of {tokens:,} tokens holds no row of {longest:,}; wanted {longest:,} or more",
            "BATCH_TOKENS",
            "TASK_FEATURE_LENGTHS",
        )
    return tokens // longest
