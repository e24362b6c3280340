"""Write the estimates of `t5x_lite plan` for TPU slices into the headers of the recipes.

    python benchmarks/plan_recipes.py --plans=plans [recipes/t5_1_1/base.gin ...]

Needs libtpu and minutes per plan. Plans that exist in the directory are not computed again. A
recipe that was changed after its plan fails tests/test_recipes.py, which reads the headers with
`read`.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GIN_CONFIGS = ROOT / "gin_configs"
RECIPES = tuple(
    sorted(path.relative_to(GIN_CONFIGS).as_posix() for path in GIN_CONFIGS.glob("recipes/*/*.gin"))
)
TITLE = "# Planned for {slice}, {chips} chips ({accelerator}), with {flags}:"
NO_FLAGS = "the settings of this file"
NOT_COMPUTED = "#   not computed"
LINES = (
    "#   {parameters:,} parameters, mesh {mesh}, remat {remat}, {rows:,} rows of {lengths} a step",
    "#   memory {memory:.2f} of {limit:.2f} GB a chip; step {low:,.0f} to {high:,.0f} ms; MFU "
    "{mfu_low:.1f} to {mfu_high:.1f} %",
    "#   {steps:,} steps: {days_low:,.2f} to {days_high:,.2f} days, {hours_low:,.0f} to "
    "{hours_high:,.0f} chip-hours; jax {jax}, libtpu {libtpu}",
)


class Header(NamedTuple):
    """One plan in the header of a recipe.

    Attributes:
        slice: The TPU slice, such as "v5e:8x8".
        chips: Its number of chips.
        flags: The flags that the plan adds to the recipe.
        line: Index of the plan's first line, after its title.
        values: The values of LINES; None if the plan is not computed.
    """

    slice: str
    chips: int
    flags: tuple[str, ...]
    line: int
    values: dict[str, str] | None


def pattern(line: str) -> str:
    """A line of LINES as a regular expression with the same names."""
    parts = re.split(r"\{(\w+)[^}]*\}", line)
    return "".join(
        f"(?P<{part}>.+?)" if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )


def read(name: str) -> dict[str, Header]:
    """The plans in the header of a recipe, by slice.

    Raises:
        ValueError: If there is no plan, or a line differs from its form; the message has both.
    """
    lines = (GIN_CONFIGS / name).read_text().splitlines()
    headers = {}
    for number, line in enumerate(lines, 1):
        if title := re.fullmatch(pattern(TITLE), line):
            headers[title["slice"]] = Header(
                title["slice"],
                int(title["chips"]),
                () if title["flags"] == NO_FLAGS else tuple(shlex.split(title["flags"])),
                number,
                _values(name, lines, number),
            )
    if not headers:
        raise ValueError(f"{name} has no line {TITLE!r}")
    return headers


def _values(name: str, lines: list[str], start: int) -> dict[str, str] | None:
    if lines[start] == NOT_COMPUTED:
        return None
    values: dict[str, str] = {}
    for number, expected in enumerate(LINES, start):
        match = re.fullmatch(pattern(expected), lines[number])
        if match is None:
            raise ValueError(f"{name}:{number + 1} is {lines[number]!r}; expected {expected!r}")
        values |= match.groupdict()
    return values


def values_of(plan: dict) -> dict:
    """The values of LINES, from a plan."""
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


def write(name: str, slice_name: str, plan: dict) -> None:
    """Write a plan into the header of the recipe, where the slice's last one is."""
    path = GIN_CONFIGS / name
    lines = path.read_text().splitlines()
    header = read(name)[slice_name]
    old = 1 if header.values is None else len(LINES)
    lines[header.line : header.line + old] = [line.format(**values_of(plan)) for line in LINES]
    path.write_text("\n".join(lines) + "\n")


def planned(name: str, header: Header, directory: Path) -> dict:
    """The plan of a recipe for a slice, computed by the command line unless it is in DIR."""
    recipe = name.removeprefix("recipes/").removesuffix(".gin").replace("/", "-")
    folder = directory / f"{recipe}-{header.slice.replace(':', '-')}"
    if not (folder / "plan.json").exists():
        words = ["plan", f"--gin_file={name}", f"--topology={header.slice}", *header.flags]
        command = [sys.executable, "-m", "t5x_lite", *words, f"--output={folder}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((folder / "plan.json").read_text())


def main() -> None:
    """Plan recipes for the slices in their headers, and write the headers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", type=Path, default=Path("plans"), metavar="DIR")
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    for name in options.recipes:
        for header in read(name).values():
            write(name, header.slice, planned(name, header, options.plans))
            print(name, header.slice, flush=True)


if __name__ == "__main__":
    main()
