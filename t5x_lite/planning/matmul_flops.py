"""FLOPs of the matrix products of a compiled program, in the forms that XLA writes them."""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from t5x_lite.planning.hlo import Instruction


def product_flops(instruction: Instruction, operands: Mapping[str, Instruction]) -> int:
    """Count the FLOPs of a dot or convolution: two for each multiply-add, 0 for other opcodes.

    On TPUs matrix products are convolutions with batch dimensions as spatial ones, so only pairs of
    elements inside the window count.

    Args:
        instruction: any HLO instruction.
        operands: the instructions of its computation by name.
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
    left_labels, right_labels, out_labels = labels[1], labels[2], labels[3]
    pairs = math.prod(
        _pairs_in_window(
            left[left_labels.index(d)],
            right[right_labels.index(d)],
            out[out_labels.index(d)],
            window,
        )
        for d, window in zip(
            sorted(c for c in out_labels if c.isdigit()), _windows(instruction), strict=True
        )
    )
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = out[out_labels.index("b")]
    features = out[out_labels.index("f")] * right[right_labels.index("i")]
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
def _pairs_in_window(left: int, right: int, out: int, window: _Window) -> int:
    """Count the (output, window) positions of a dimension that read a left element."""
    positions = (
        np.arange(out)[:, None] * window.stride
        + np.arange(right)[None, :] * window.window_dilation
        - window.pad
    )
    inside = (positions >= 0) & (positions < (left - 1) * window.base_dilation + 1)
    return int(np.sum(inside & (positions % window.base_dilation == 0)))
