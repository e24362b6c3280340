"""Machines by name: "v5e:4x4" is a TPU slice of 16 chips, "h200:8" is eight GPUs.

The devices of a TPU slice come from libtpu, the TPU's compiler: programs can be compiled for them
but not run. It works on any x86-64 Linux machine.
"""

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from t5x_lite.errors import ConfigError
from t5x_lite.hardware.chips import CHIPS, Chip

# Largest slices that can be rented: chips (the pages named in `chips`).
_LARGEST = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# Chips whose compiler (libtpu 0.0.42) overflows a stack of the usual 8 MiB even on tiny programs.
_DEEP = ("tpu7x",)
# What libtpu needs where there is no TPU and no metadata server.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """Chips of one kind.

    Attributes:
        chip: the kind.
        shape: the grid of chips of one slice; for GPUs their number.
        slices: slices, connected by the data-center network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name, such as "v5e:4x4" or "v5e:4x4 x 2"."""
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{name} x {self.slices}"

    @property
    def chips(self) -> int:
        """The number of chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """The number of JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Which dimensions close to a ring: v5e and v6e at 16, the others in multiples of 4."""
        if self.chip.torus == 2:
            return tuple(size == 16 for size in self.shape)
        return tuple(all(side % 4 == 0 for side in self.shape) for _ in self.shape)


def topology(name: str, slices: int = 1) -> Topology:
    """Parse the name of a topology.

    Args:
        name: CHIP:SIZES, such as "v5e:4x4", "v5p:4x4x4" or "h200:8".
        slices: the number of slices.

    Raises:
        ConfigError: for an unknown chip or slice, with the nearest that exist.
    """
    kind, _, sizes = name.partition(":")
    chip = next((chip for chip in CHIPS if chip.name == kind.lower()), None)
    if slices < 1:
        raise ConfigError(f"slices is {slices}; it must be at least 1", "plan.slices")
    if chip is None:
        known = ", ".join(chip.name for chip in CHIPS)
        raise ConfigError(
            f"topology {name!r} names no chip that is known; expected one of {known}, as in "
            f"v5e:4x4, v5p:4x4x4 or h200:8",
            "plan.topology",
        )
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise ConfigError(
            f"topology {name!r} is not of the form CHIP:SIZES, such as {_examples(chip, 16)}",
            "plan.topology",
        )
    shape = tuple(int(size) for size in sizes.split("x"))
    if not chip.torus:
        if len(shape) > 1 or not sum(shape):
            raise ConfigError(
                f"topology {name!r}: GPUs are counted, as in {chip.name}:8", "plan.topology"
            )
        return Topology(chip, shape, slices)
    if sizes not in _slices(chip):
        raise ConfigError(
            f"there is no slice {name!r}; the nearest are {_examples(chip, math.prod(shape))}",
            "plan.topology",
        )
    return Topology(chip, shape, slices)


def tpu_devices(requested: Topology) -> Sequence[Any]:
    """Return the devices of a TPU topology.

    Raises:
        ConfigError: if libtpu is not installed.
    """
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "compiling for a TPU needs libtpu: pip install 't5x_lite[tpu-plan]' (Linux, x86-64)"
        ) from None
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": requested.slices} if requested.slices > 1 else {}
    if requested.chip.cores > 1 and not requested.chip.device_is_core:
        options["chip_config_name"] = "megacore"  # both cores as one device, as TPU VMs have it
    name = f"{requested.chip.name}:{'x'.join(map(str, requested.shape))}"
    with _environment():
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def check_stack(requested: Topology) -> None:
    """Raise ConfigError if the compiler for a topology would overflow this process's stack."""
    import resource  # of Unix alone, as libtpu is

    if requested.chip.name in _DEEP and resource.getrlimit(resource.RLIMIT_STACK)[0] != -1:
        raise ConfigError(
            f"the compiler for {requested.chip.name} needs a larger stack than this shell allows: "
            f"run `ulimit -s unlimited`, then the same command",
            "plan.topology_name",
        )


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the variables that libtpu reads while it is loaded; what the user set is kept."""
    new = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _slices(chip: Chip) -> tuple[str, ...]:
    """Return all slices of a chip, by size."""
    if chip.torus == 2:
        return _FLAT
    largest = _LARGEST[chip.name]
    sides = range(4, 33, 4)
    cubes = itertools.combinations_with_replacement(sides, 3)
    cubes = [cube for cube in cubes if math.prod(cube) <= largest]
    return (*_SMALL, *("x".join(map(str, c)) for c in sorted(cubes, key=math.prod)))


def _examples(chip: Chip, chips: int) -> str:
    """Name up to four slices of about this number of chips."""
    if not chip.torus:
        return f"{chip.name}:8"

    def distance(sizes: str) -> float:
        return abs(math.log(math.prod(map(int, sizes.split("x"))) / max(chips, 1)))

    near = sorted(_slices(chip), key=distance)[:4]
    return ", ".join(f"{chip.name}:{sizes}" for sizes in sorted(near, key=distance))
