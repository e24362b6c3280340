"""What the configured features can hold, and the errors that say so before anything is read."""

from collections.abc import Mapping

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.spans import Sentinels


def length_of(
    feature_lengths: Mapping[str, int], feature: str, *, least: int, objective: str
) -> int:
    """Return the configured length of a feature; ConfigError if it is missing or below `least`."""
    if feature not in feature_lengths:
        raise ConfigError(
            f"{objective} needs the length of {feature!r}: {dict(feature_lengths)} lacks "
            f"{feature!r}",
            "TASK_FEATURE_LENGTHS",
        )
    if feature_lengths[feature] < least:
        raise ConfigError(
            f"{feature} of {feature_lengths[feature]} tokens hold nothing of {objective}: use at "
            f"least {least}",
            "TASK_FEATURE_LENGTHS",
        )
    return feature_lengths[feature]


def check_targets(
    feature_lengths: Mapping[str, int], needed: int, *, made_by: str, average: bool = False
) -> None:
    """Raise ConfigError where the targets are shorter than what is made, EOS included."""
    targets_length = feature_lengths["targets"]
    if targets_length < needed:
        raise ConfigError(
            f"targets of {targets_length} tokens are too short: {made_by} makes targets of "
            f"{needed}{' on average' if average else ''}",
            "TASK_FEATURE_LENGTHS",
        )


def check_sentinels(needed: int, sentinels: Sentinels) -> None:
    """Raise ConfigError where an objective may need more sentinels than the vocabulary has."""
    if needed > sentinels.count:
        raise ConfigError(
            f"the objective needs up to {needed} sentinels a piece and the vocabulary has "
            f"{sentinels.count}: use shorter features, longer spans, a lower noise density, more "
            "extra ids, or let it borrow pieces of the vocabulary (borrow_pieces)",
            "TASK_FEATURE_LENGTHS",
            "OBJECTIVE",
        )


def check_share(value: float, name: str, *, most: float = 1.0, inclusive: bool = False) -> None:
    """Raise ConfigError for a share (0.15 is 15 %) that no text could lose."""
    if not 0 < value <= most or (value == most and not inclusive):
        raise ConfigError(
            f"{name.rsplit('.')[-1]} is {value}: it must lie above 0 and "
            f"{'not above' if inclusive else 'below'} {most}",
            name,
        )


def check_at_least(value: float, least: float, name: str) -> None:
    """Raise ConfigError for a number that is too small."""
    if value < least:
        raise ConfigError(f"{name.rsplit('.')[-1]} is {value}: it must be at least {least}", name)
