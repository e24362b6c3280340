"""FLOPs of the matrix products of a compiled program, in the forms XLA writes them."""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from t5x_lite.planning.hlo import Instruction


def product_flops(instruction: Instruction, operands: Mapping[str, Instruction]) -> int:
    """FLOPs of a dot or convolution (two for a multiplication and its addition), else 0.

    On TPUs matrix products are convolutions, their batch dimensions spatial ones: only pairs of
    elements that meet count.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (operands[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(d) for d in found[1].split(",") if d] if found else []
        return 2 * math.prod(out) * math.prod(left[d] for d in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    pairs = math.prod(
        _meeting(left[of_left.index(d)], right[of_right.index(d)], out[of_out.index(d)], window)
        for d, window in zip(
            sorted(c for c in of_out if c.isdigit()), _windows(instruction), strict=True
        )
    )
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = out[of_out.index("b")]
    features = out[of_out.index("f")] * right[of_right.index("i")]
    return 2 * pairs * batch * features // (1 if batch_groups is None else int(batch_groups[1]))


class _Window(NamedTuple):
    size: int
    stride: int
    pad: int
    base_dilation: int
    window_dilation: int
    reversed: bool


def _windows(instruction: Instruction) -> list[_Window]:
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    if not found:
        return []
    fields = dict(field.split("=") for field in found[1].split())
    count = len(fields["size"].split("x"))

    def values(name: str, default: str) -> list[str]:
        return fields.get(name, "x".join([default] * count)).split("x")

    return [
        _Window(
            int(size), int(stride), int(pad.split("_")[0]), int(base), int(dilation), flip == "1"
        )
        for size, stride, pad, base, dilation, flip in zip(
            values("size", "1"),
            values("stride", "1"),
            values("pad", "0_0"),
            values("lhs_dilate", "1"),
            values("rhs_dilate", "1"),
            values("rhs_reversal", "0"),
            strict=True,
        )
    ]


@functools.lru_cache(maxsize=10_000)
def _meeting(left: int, right: int, out: int, window: _Window) -> int:
    """How many (output, window) places along a dimension meet an element of the left operand."""
    places = (
        np.arange(out)[:, None] * window.stride
        + np.arange(right)[None, :] * window.window_dilation
        - window.pad
    )
    inside = (places >= 0) & (places < (left - 1) * window.base_dilation + 1)
    return int(np.sum(inside & (places % window.base_dilation == 0)))
