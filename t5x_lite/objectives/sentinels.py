"""Sentinels: the token ids that mark corrupted spans, and the check that there are enough."""

from dataclasses import dataclass

from t5x_lite.errors import require


@dataclass(frozen=True)
class Sentinels:
    """The ids that mark spans, T5's `<extra_id_0>`, `<extra_id_1>` and so on.

    Args:
        first: The id that marks the first span of a row; each later span takes the next lower id.
        count: The number of such ids, so the last one is `first - count + 1`.
    """

    first: int
    count: int


# The byte vocabulary of ByT5 has 259 ids and no extra ones: its sentinels are its last bytes. Bytes
# 245 to 255 occur in no UTF-8 text, so these 11 (258 ... 248) are never mistaken for text.
BYTE_SENTINELS = Sentinels(first=258, count=11)


def check_sentinels(needed: int, sentinels: Sentinels) -> None:
    """Check that a vocabulary has as many sentinels as an objective may need.

    Args:
        needed: The largest number of spans that the objective makes of one chunk of text.
        sentinels: Those of the vocabulary.

    Raises:
        ConfigError: If there are too few.
    """
    require(
        needed <= sentinels.count,
        f"the objective needs up to {needed} sentinels per chunk of text and the vocabulary has "
        f"{sentinels.count}: use shorter features, longer spans, a lower noise density, more "
        "extra ids, or let it borrow pieces of the vocabulary (borrow_pieces)",
        "TASK_FEATURE_LENGTHS",
        "OBJECTIVE",
    )
