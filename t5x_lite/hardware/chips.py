"""Published peaks of TPUs and GPUs: FLOP/s, memory, bandwidth, links.

Sources: TPUs, the "System architecture" pages of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e,
tpu7x), v4's links from Jouppi et al. 2023 (table 4); GPUs, NVIDIA's data sheets, dense bfloat16
(the sheets' headline is with sparsity, twice as much). A page gives bandwidth in both directions
together; here it is per direction.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one chip.

    Attributes:
        name: as in a topology ("v5e:4x4").
        device_kinds: prefixes of what JAX calls its devices.
        peak: dense bfloat16 FLOP/s.
        hbm: bytes of memory.
        hbm_bandwidth: bytes a second.
        ici: bytes a second of all links to other chips together, one direction (a GPU: NVLink).
        torus: dimensions of the network of links; 0 for a switch.
        dcn: bytes a second of the data-center network, one direction; None if not published.
        cores: cores of a chip.
        device_is_core: whether JAX shows each core as a device.
        flops_per_cycle: of a chip's matrix units; with the peak it gives the clock.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    torus: int
    dcn: float | None
    cores: int = 1
    device_is_core: bool = False
    flops_per_cycle: int | None = None

    @property
    def clock(self) -> float | None:
        """Cycles a second, in the TPU compiler's sense of a cycle."""
        return None if self.flops_per_cycle is None else self.peak / self.flops_per_cycle

    @property
    def devices(self) -> int:
        """The number of JAX devices of a chip."""
        return self.cores if self.device_is_core else 1


_GIB = 2.0**30
_GBIT = 1e9 / 8
CHIPS = (
    Chip(
        name="v4",
        device_kinds=("TPU v4",),
        peak=275e12,
        hbm=32 * _GIB,
        hbm_bandwidth=1200e9,
        ici=300e9,  # 6 links of 50 GB/s
        torus=3,
        dcn=None,
        cores=2,
        flops_per_cycle=2 * 4 * 2 * 128**2,  # 2 cores of 4 units
    ),
    Chip(
        name="v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peak=197e12,
        hbm=16 * _GIB,
        hbm_bandwidth=819e9,
        ici=200e9,  # 400 GB/s both ways, 4 links
        torus=2,
        dcn=25 * _GBIT,  # 6.4 Tbit/s for a pod of 256
        flops_per_cycle=4 * 2 * 128**2,
    ),
    Chip(
        name="v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        peak=459e12,
        hbm=95 * _GIB,
        hbm_bandwidth=2765e9,
        ici=600e9,  # 1,200 GB/s both ways, 6 links
        torus=3,
        dcn=50 * _GBIT,
        cores=2,
        flops_per_cycle=2 * 4 * 2 * 128**2,
    ),
    Chip(
        name="v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        peak=918e12,
        hbm=32 * _GIB,
        hbm_bandwidth=1638e9,
        ici=400e9,  # 800 GB/s both ways, 4 links
        torus=2,
        dcn=100 * _GBIT,
        flops_per_cycle=4 * 2 * 256**2,  # with fewer the compiler's estimates would beat the peak
    ),
    Chip(
        name="tpu7x",
        device_kinds=("TPU7x", "TPU v7x"),
        peak=2307e12,
        hbm=192 * _GIB,
        hbm_bandwidth=7380e9,
        ici=600e9,  # 1,200 GB/s both ways, 6 links
        torus=3,
        dcn=100 * _GBIT,
        cores=2,
        device_is_core=True,
        flops_per_cycle=2 * 4 * 2 * 256**2,  # likewise
    ),
    Chip(
        name="a100",  # SXM, 80 GB
        device_kinds=("NVIDIA A100",),
        peak=312e12,
        hbm=80e9,
        hbm_bandwidth=2039e9,
        ici=300e9,
        torus=0,
        dcn=None,
    ),
    Chip(
        name="h100",  # SXM
        device_kinds=("NVIDIA H100",),
        peak=989e12,
        hbm=80e9,
        hbm_bandwidth=3350e9,
        ici=450e9,
        torus=0,
        dcn=None,
    ),
    Chip(
        name="h200",  # SXM
        device_kinds=("NVIDIA H200",),
        peak=989e12,
        hbm=141e9,
        hbm_bandwidth=4800e9,
        ici=450e9,
        torus=0,
        dcn=None,
    ),
)
# Boards that share the beginning of a name but not the peak of the SXM module above.
_OTHER_PEAKS = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of a device by the name that JAX gives it; the longest known prefix wins."""
    kinds = [(kind, chip) for chip in CHIPS for kind in chip.device_kinds]
    matches = [(kind, chip) for kind, chip in kinds if device_kind.startswith(kind)]
    return max(matches, key=lambda pair: len(pair[0]))[1] if matches else None


def peak_flops(device_kind: str) -> float | None:
    """Return the peak dense bfloat16 FLOP/s of one JAX device; None if unknown (a CPU)."""
    if device_kind in _OTHER_PEAKS:
        return _OTHER_PEAKS[device_kind]
    chip = chip_of(device_kind)
    return None if chip is None else chip.peak / chip.devices
