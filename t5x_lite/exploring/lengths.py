"""Lengths of features told as the T5 study has them, at the length that a study is done at."""

import math
from collections.abc import Mapping


def in_proportion(of_512: Mapping[str, int], length: int) -> dict[str, int]:
    """Lengths for a text of `length` that stand to it as `of_512` stand to 512, rounded up.

    >>> in_proportion({"inputs": 512, "targets": 114}, 128)
    {'inputs': 128, 'targets': 29}
    """
    return {name: math.ceil(value * length / 512) for name, value in of_512.items()}
