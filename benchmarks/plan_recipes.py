"""Writes what `t5x_lite plan` says of each recipe for a TPU slice into the recipe's header.

    python benchmarks/plan_recipes.py --plans=plans [recipes/t5_1_1/base_v5e.gin ...]

Needs libtpu; minutes a recipe. Plans that DIR holds already are not made again. A recipe that was
changed since its plan is noticed by tests/test_recipes.py, which reads the headers with `read`.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GIN_CONFIGS = ROOT / "gin_configs"
RECIPES = tuple(
    sorted(path.relative_to(GIN_CONFIGS).as_posix() for path in GIN_CONFIGS.glob("recipes/*/*.gin"))
)
TITLE = "# Planned for {slice} (estimates of `t5x_lite plan`; nothing was measured on a TPU):"
NOT_COMPUTED = "#   not computed"
LINES = (
    "#   {parameters:,} parameters, mesh {mesh}, remat {remat}, {rows:,} rows of {lengths} a step",
    "#   memory {memory:.2f} of {limit:.2f} GB a chip; step {low:,.0f} to {high:,.0f} ms; MFU "
    "{mfu_low:.1f} to {mfu_high:.1f} %",
    "#   {steps:,} steps: {days_low:,.2f} to {days_high:,.2f} days, {hours_low:,.0f} to "
    "{hours_high:,.0f} chip-hours; jax {jax}, libtpu {libtpu}",
)


class Header(NamedTuple):
    """What a recipe's header says: its slice, and the values of LINES, None if not computed."""

    slice: str
    values: dict[str, str] | None


def pattern(line: str) -> str:
    """A line of LINES as a regular expression with the same names."""
    parts = re.split(r"\{(\w+)[^}]*\}", line)
    return "".join(
        f"(?P<{part}>.+?)" if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )


def read(name: str) -> Header:
    """The header of a recipe; ValueError with the line that is not as it must be."""
    lines = (GIN_CONFIGS / name).read_text().splitlines()
    titles = [re.fullmatch(pattern(TITLE), line) for line in lines]
    where = next((number for number, title in enumerate(titles) if title), None)
    if where is None:
        raise ValueError(f"{name} has no line {TITLE!r}")
    if lines[where + 1] == NOT_COMPUTED:
        return Header(titles[where]["slice"], None)
    values: dict[str, str] = {}
    for number, expected in enumerate(LINES, where + 1):
        found = re.fullmatch(pattern(expected), lines[number])
        if found is None:
            raise ValueError(f"{name}:{number + 1} is {lines[number]!r}; wanted {expected!r}")
        values |= found.groupdict()
    return Header(titles[where]["slice"], values)


def values_of(plan: dict) -> dict:
    """What LINES want, from a plan."""
    estimate, memory, tokens = plan["estimate"], plan["memory"], plan["batch"]["tokens"]
    milliseconds = [1e3 * seconds for seconds in estimate["step_seconds"]]
    return {
        "parameters": plan["model"]["parameters"],
        "mesh": ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1),
        "remat": plan["model"]["remat"],
        "rows": plan["batch"]["rows"],
        "lengths": "/".join(str(length) for length in plan["batch"]["lengths"].values()),
        "memory": memory["total"] / 1e9,
        "limit": memory["limit"] / 1e9,
        **dict(zip(("low", "high"), milliseconds, strict=True)),
        **dict(zip(("mfu_low", "mfu_high"), (100 * m for m in estimate["mfu"]), strict=True)),
        "steps": round(estimate["training_tokens"] / tokens),
        **dict(zip(("days_low", "days_high"), estimate["days"], strict=True)),
        **dict(zip(("hours_low", "hours_high"), estimate["chip_hours"], strict=True)),
        "jax": plan["compiler"]["jax"],
        "libtpu": plan["compiler"]["libtpu"],
    }


def write(name: str, plan: dict) -> None:
    """Put a plan into the recipe's header, in place of what stood there."""
    path = GIN_CONFIGS / name
    lines = path.read_text().splitlines()
    header = read(name)
    where = lines.index(TITLE.format(slice=header.slice))
    old = 1 if header.values is None else len(LINES)
    lines[where + 1 : where + 1 + old] = [line.format(**values_of(plan)) for line in LINES]
    path.write_text("\n".join(lines) + "\n")


def planned(name: str, directory: Path) -> dict:
    """The plan of a recipe, made by the command line where it is not there."""
    folder = directory / name.removeprefix("recipes/").removesuffix(".gin").replace("/", "-")
    if not (folder / "plan.json").exists():
        words = ["plan", f"--gin_file={name}", f"--topology={read(name).slice}"]
        command = [sys.executable, "-m", "t5x_lite", *words, f"--output={folder}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((folder / "plan.json").read_text())


def main() -> None:
    """Plan recipes and write their headers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", type=Path, default=Path("plans"), metavar="DIR")
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    for name in options.recipes:
        write(name, planned(name, options.plans))
        print(name, flush=True)


if __name__ == "__main__":
    main()
