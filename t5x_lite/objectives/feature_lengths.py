"""Checks that the configured feature lengths can hold what an objective makes."""

from collections.abc import Mapping

from t5x_lite.errors import require


def length_of(
    feature_lengths: Mapping[str, int], feature: str, *, least: int, objective: str
) -> int:
    """Look up the configured length of a feature.

    Args:
        feature_lengths: The number of tokens of each feature, TASK_FEATURE_LENGTHS.
        feature: The name to look up, "inputs" or "targets".
        least: The fewest tokens that the objective can work with.
        objective: Its name, for the error.

    Returns:
        The length in tokens.

    Raises:
        ConfigError: If the feature has no length or too small a one.
    """
    require(
        feature in feature_lengths,
        f"{objective} needs the length of {feature!r}; got {dict(feature_lengths)}",
        "TASK_FEATURE_LENGTHS",
    )
    length = feature_lengths[feature]
    require(
        length >= least,
        f"{feature} of {length} tokens are too short for {objective}: use at least {least}",
        "TASK_FEATURE_LENGTHS",
    )
    return length


def check_targets(
    feature_lengths: Mapping[str, int], needed: int, *, made_by: str, average: bool = False
) -> None:
    """Check that the targets feature holds what an objective makes, EOS included.

    Args:
        feature_lengths: The number of tokens of each feature, TASK_FEATURE_LENGTHS.
        needed: The number of tokens of the targets that the objective makes.
        made_by: The objective and its settings, for the error.
        average: Whether `needed` is an average.

    Raises:
        ConfigError: If the targets feature is shorter.
    """
    length = feature_lengths["targets"]
    require(
        length >= needed,
        f"targets of {length} tokens are too short: {made_by} makes targets of {needed}"
        f"{' on average' if average else ''}",
        "TASK_FEATURE_LENGTHS",
    )
