"""A plan as Markdown, its most expensive source lines, and a picture of time and memory."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.hardware.chips import Chip
from t5x_lite.io import atomic
from t5x_lite.planning.costs import Cost, summed
from t5x_lite.planning.estimate import KNOWN_BIAS
from t5x_lite.reporting.drawing import new_figure, to_png


def markdown(plan: Mapping[str, Any]) -> str:
    """Return the whole plan as Markdown."""
    sections = [
        _head(plan),
        _memory(plan["memory"], plan["topology"]),
        _time(plan),
        _decoding(plan["decoding"]) if plan["decoding"] else "",
        _parts(plan["compute"]) if plan["compute"] else "",
        _collectives(plan["collectives"]) if plan["collectives"] else "",
        _sources(plan),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(columns), line(rule), *map(line, rows)])


def duration(seconds: float) -> str:
    """Format seconds in a fitting unit: "421 ms", "1.15 s", "12 us"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def gigabytes(size: float) -> str:
    """Format bytes as decimal gigabytes, small ones as megabytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def span(values: Sequence[float], show: str = ",.3g") -> str:
    """Format a range, as one number where both ends look alike."""
    low, high = (format(value, show) for value in values)
    return low if low == high else f"{low} to {high}"


def _head(plan: Mapping[str, Any]) -> str:
    machine, batch, model = plan["topology"], plan["batch"], plan["model"]
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1)
    lengths = "/".join(str(length) for length in batch["lengths"].values())
    return "\n".join(
        [
            f"# Plan of a {plan['what']} on {machine['name']}",
            "",
            f"- {machine['chips']} chips ({machine['devices']} devices); mesh: {mesh or 'one'}",
            f"- {model['parameters']:,} parameters, {model['dtype']}, remat {model['remat']}",
            f"- {batch['rows']:,} rows of {lengths} tokens a step, {batch['rows_per_chip']:g} a "
            f"chip: {batch['tokens']:,} tokens",
            f"- {plan['flops']['model_per_step']:.4g} model FLOPs a step "
            f"({plan['flops']['source']})",
        ]
    )


def _memory(memory: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    total, limit = memory["total"], memory["limit"]
    verdict = "fits" if memory["fits"] else "DOES NOT FIT"
    spare = f"{gigabytes(abs(limit - total))} {'to spare' if memory['fits'] else 'too much'}"
    lines = [
        f"## Memory of a device: {gigabytes(total)} of {gigabytes(limit)}: {verdict}, {spare}",
        "",
    ]
    if memory["split"]:
        rows = [(name, gigabytes(size)) for name, size in memory["split"].items()]
        if memory["fits"] or sum(memory["split"].values()) == total:
            rows.append(("total", gigabytes(total)))
        lines.append(table(("what", "size"), rows))
    if not memory["fits"] and memory["largest"]:
        rows = [
            (f"{buffer['kind']}: {buffer['name']}".removeprefix(": "), gigabytes(buffer["bytes"]))
            for buffer in memory["largest"]
        ]
        lines += ["", "The largest arrays:", "", table(("array", "size"), rows)]
    return "\n".join(lines)


def _time(plan: Mapping[str, Any]) -> str:
    estimate, bounds = plan["estimate"], plan["roofline"]
    rows = []
    if estimate is not None:
        days = estimate["days"]
        rows = [
            ("step time, ms", span([1e3 * s for s in estimate["step_seconds"]])),
            ("tokens a second", span(estimate["tokens_per_second"], ",.0f")),
            ("MFU, %", span([100 * share for share in estimate["mfu"]])),
            (f"days for {estimate['training_tokens']:.3g} tokens", span(days)),
            ("chip-hours for them", span(estimate["chip_hours"], ",.0f")),
        ]
    if (cost := plan["cost"]) is not None:
        title = f"cost at {cost['price_per_chip_hour']:g} a chip-hour"
        rows.append((title, span(cost["cost"], ",.0f")))
    rows += [
        (f"roofline: {name}, ms", f"{1e3 * bounds[name]:.3g}")
        for name in ("compute", "memory", "network")
    ]
    if plan["compute"]:
        compute, network = plan["compute"], plan["collectives"]
        rows += [
            ("compiler-estimated compute, ms", f"{1e3 * compute['seconds']:.4g}"),
            ("every instruction at its peak, ms", f"{1e3 * compute['instruction_roofline']:.4g}"),
            ("collectives, ms", f"{1e3 * network['seconds']:.3g}"),
            ("of them not overlapped with compute, ms", f"{1e3 * network['exposed']:.3g}"),
        ]
    return "## Time (estimated)\n\n" + table(("what", "estimate"), rows)


def _decoding(decoding: Mapping[str, Any]) -> str:
    cache = decoding["cache_bytes"]
    rows = [
        ("texts at a time", f"{decoding['texts']:,}"),
        ("cached keys and values of a device, of the texts", gigabytes(cache["own"])),
        ("the same, of the encoder's output", gigabytes(cache["cross"])),
        ("prefill, ms", span([1e3 * s for s in decoding["prefill_seconds"]])),
        ("a token of every text, ms", span([1e3 * s for s in decoding["token_seconds"]])),
        (
            "tokens a second and chip, prefill aside",
            span(decoding["tokens_per_second_per_chip"], ",.0f"),
        ),
    ]
    title = f"## Generation of {decoding['tokens']:,} tokens (estimated)"
    return f"{title}\n\n{table(('what', 'estimate'), rows)}"


def _parts(compute: Mapping[str, Any]) -> str:
    total = compute["seconds"] or math.inf
    rows = [
        (
            f"{part['part']}, {part['direction']}",
            f"{1e3 * part['seconds']:.4g}",
            f"{part['seconds'] / total:.1%}",
            f"{part['flops'] / 1e9:,.1f}",
        )
        for part in compute["parts"]
    ]
    columns = ("part", "compiler-estimated ms", "share", "GFLOP executed")
    return "## Where the time goes\n\n" + table(columns, rows)


def _collectives(network: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{kind['kind']} over {kind['axis'] or 'nothing'}"
            f"{', overlapped' if kind['overlapped'] else ''}",
            f"{kind['count']:,}",
            gigabytes(kind["bytes"]),
            f"{1e3 * kind['seconds']:.3g}",
            f"{1e3 * kind['exposed']:.3g}",
        )
        for kind in network["kinds"]
    ]
    if not rows:
        return ""
    columns = ("collective", "a step", "bytes", "estimated ms", "exposed ms")
    return "## Collectives\n\n" + table(columns, rows)


def _sources(plan: Mapping[str, Any]) -> str:
    lines = ["## Where the numbers come from", ""]
    for name in ("memory", "compute", "collectives", "roofline", "estimate", "decoding", "cost"):
        if plan[name] is not None:
            lines.append(f"- {name}: {plan[name]['source']}")
    if plan["compute"] is not None:
        lines.append(
            f"- known bias: the one published run compared with the compiler's estimate took "
            f"{KNOWN_BIAS[0]} to {KNOWN_BIAS[1]} of it (large matrix products; short rows and "
            f"small heads are untested)"
        )
    if (compiler := plan["compiler"]) is not None:
        how = "read from the cache" if compiler["cached"] else f"{compiler['seconds']:.0f} s"
        lines.append(f"- compiler: libtpu {compiler['libtpu']}, jax {compiler['jax']}, {how}")
    return "\n".join([*lines, *(f"- {note}" for note in plan["notes"])])


_ROWS = 40
_COLORS = {
    "forward": "tab:blue",
    "backward": "tab:orange",
    "recomputed": "tab:red",
    "update": "tab:gray",
    "prefill": "tab:blue",
    "token": "tab:orange",
}


def explanation(costs: Sequence[Cost], chip: Chip) -> str:
    """Return the most expensive source lines as Markdown, each with its time at the chip's peaks.

    A line far above its own roofline can be improved by a better program; a line at its roofline
    needs fewer FLOPs or bytes.

    Args:
        costs: The costs of all instructions.
        chip: The chip whose peaks are used.
    """
    assert chip.clock is not None
    peak, bandwidth = chip.peak / chip.devices, chip.hbm_bandwidth / chip.devices
    lines_of_source = summed(
        costs, lambda cost: (cost.part, cost.direction, cost.module, cost.line)
    )
    # A line's roofline is the sum over its instructions, not the roofline of their sum.
    bounds: dict[tuple[str, ...], float] = {}
    for cost in costs:
        key = (cost.part, cost.direction, cost.module, cost.line)
        bounds[key] = bounds.get(key, 0.0) + cost.seconds(peak=peak, bandwidth=bandwidth)
    total = sum(cost.cycles for cost in costs) or 1.0
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
        for (part, direction, module, line), cost in list(lines_of_source.items())[:_ROWS]
    ]
    columns = ("source line", "part", "estimated ms", "share", "at the peaks, ms", "GFLOP", "GB")
    return "## The most expensive source lines\n\n" + table(columns, rows) + "\n"


def draw(plan: Mapping[str, Any], path: Path) -> None:
    """Draw time by part and direction beside memory by kind, and save the picture."""
    figure, (left, right) = new_figure((11, 4.5), columns=2, width_ratios=(2, 1))
    _draw_time(left, plan)
    _draw_memory(right, plan["memory"])
    figure.suptitle(
        f"{plan['what']} on {plan['topology']['name']}: {plan['batch']['rows']:,} rows, "
        f"{plan['model']['parameters'] / 1e6:,.0f}M parameters"
    )
    atomic.write_bytes(path, to_png(figure))


def _draw_time(axes: Any, plan: Mapping[str, Any]) -> None:
    parts = plan["compute"]["parts"]
    names = list(dict.fromkeys(part["part"] for part in parts))
    left = dict.fromkeys(names, 0.0)  # where the next bar of each part begins
    directions = {part["direction"] for part in parts}
    for direction in (name for name in _COLORS if name in directions):
        color = _COLORS[direction]
        times = {p["part"]: 1e3 * p["seconds"] for p in parts if p["direction"] == direction}
        widths = [times.get(name, 0.0) for name in names]
        axes.barh(names, widths, left=list(left.values()), color=color, label=direction)
        left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
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
    axes.set_ylabel("GB (dashed: memory of the device)")
    axes.legend(fontsize="small")
