"""Make figures with matplotlib and save them as PNG."""

import io
from typing import Any


def new_figure(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Make a figure and its axes.

    It does not use pyplot, which would select a backend for the process, look for a display, and
    keep every figure in memory until it is closed.

    Args:
        size: Width and height in inches.
        rows: Rows of axes.
        columns: Columns of axes.
        **options: Further arguments of matplotlib's `Figure.subplots`, such as `sharey`.

    Returns:
        The figure, and its axes: one, or an array of them.
    """
    from matplotlib.figure import Figure  # takes a second to import; most commands draw nothing

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def to_png(figure: Any, *, dpi: int = 120, colors: int | None = None) -> bytes:
    """Return a figure as PNG.

    Args:
        figure: The figure.
        dpi: Pixels per inch.
        colors: Number of colors that the picture is reduced to; 64 make a file a third as large.
            None keeps all.
    """
    full = io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi)
    if colors is None:
        return full.getvalue()
    from PIL import Image

    reduced = io.BytesIO()
    Image.open(full).convert("RGB").quantize(colors).save(reduced, format="png", optimize=True)
    return reduced.getvalue()
