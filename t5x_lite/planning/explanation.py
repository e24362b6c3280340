"""Where a compiled step spends its time and memory: by module and source line, and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.planning.chips import Chip
from t5x_lite.planning.costs import Cost, summed
from t5x_lite.planning.report import table

_ROWS = 40
_COLOURS = {
    "forward": "tab:blue",
    "backward": "tab:orange",
    "recomputed": "tab:red",
    "update": "tab:gray",
    "prefill": "tab:blue",
    "token": "tab:orange",
}


def explanation(found: Sequence[Cost], chip: Chip) -> str:
    """Markdown: the dearest places of the program, with the time they would take at the peaks.

    A place far above its own roofline is where a better program can win; one at its roofline needs
    fewer FLOPs or bytes.
    """
    assert chip.clock is not None
    peak, bandwidth = chip.peak / chip.devices, chip.hbm_bandwidth / chip.devices
    places = summed(found, lambda cost: (cost.part, cost.direction, cost.module, cost.line))
    # A place's roofline is the sum over its instructions, not the roofline of their sum.
    bounds: dict[tuple[str, ...], float] = {}
    for cost in found:
        key = (cost.part, cost.direction, cost.module, cost.line)
        bounds[key] = bounds.get(key, 0.0) + cost.seconds(peak=peak, bandwidth=bandwidth)
    total = sum(cost.cycles for cost in found) or 1.0
    rows = [
        (
            f"{module} {line}".strip() or "the compiler's own (copies, layouts)",
            f"{part}, {direction}",
            f"{1e3 * cost.cycles / chip.clock:.3g}",
            f"{cost.cycles / total:.1%}",
            f"{1e3 * bounds[part, direction, module, line]:.3g}",
            f"{cost.flops / 1e9:,.0f}",
            f"{cost.bytes / 1e9:.3g}",
        )
        for (part, direction, module, line), cost in list(places.items())[:_ROWS]
    ]
    columns = ("place", "part", "estimated ms", "share", "at the peaks, ms", "GFLOP", "GB")
    return "## The dearest places\n\n" + table(columns, rows) + "\n"


def draw(plan: Mapping[str, Any], path: Path) -> None:
    """A picture of time by part and direction beside memory by kind."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.5), width_ratios=(2, 1), layout="constrained"
    )
    _draw_time(left, plan)
    _draw_memory(right, plan["memory"])
    figure.suptitle(
        f"{plan['what']} on {plan['topology']['name']}: {plan['batch']['rows']:,} rows, "
        f"{plan['model']['parameters'] / 1e6:,.0f}M parameters"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_time(axes: Any, plan: Mapping[str, Any]) -> None:
    parts = plan["compute"]["parts"]
    names = list(dict.fromkeys(part["part"] for part in parts))
    begins = dict.fromkeys(names, 0.0)
    found = {part["direction"] for part in parts}
    for direction in (each for each in _COLOURS if each in found):
        colour = _COLOURS[direction]
        times = {p["part"]: 1e3 * p["seconds"] for p in parts if p["direction"] == direction}
        widths = [times.get(name, 0.0) for name in names]
        axes.barh(names, widths, left=list(begins.values()), color=colour, label=direction)
        begins = {name: begins[name] + width for name, width in zip(names, widths, strict=True)}
    exposed = 1e3 * plan["collectives"]["exposed"]
    axes.barh(["network"], [exposed], color="tab:purple", label="exposed collectives")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a step (compiler-estimated, network by bandwidth)")
    axes.legend(fontsize="small")


def _draw_memory(axes: Any, memory: Mapping[str, Any]) -> None:
    bottom = 0.0
    for kind, size in memory["split"].items():
        if size > 0.002 * memory["total"]:
            axes.bar(["device"], [size / 1e9], bottom=bottom, label=f"{kind}, {size / 1e9:.2f}")
            bottom += size / 1e9
    axes.axhline(memory["limit"] / 1e9, color="black", linestyle="--", linewidth=1)
    axes.set_ylabel("GB (dashed: what the chip has)")
    axes.legend(fontsize="small")
