"""XLA compiler options of the training step, by kind of chip."""

from collections.abc import Mapping

import jax

from t5x_lite.hardware.chips import chip_of

# XLA turns the gather of a small sharded weight and its product into a loop over pieces of the
# product. T5's products are too small for that: by the TPU compiler's own estimate, T5 1.1 base on
# v5e:4x4 takes 143 ms a step without and 269 ms with it; XL does not change
# (benchmarks/planning.md). Only v5e was tried, and only without tensor parallelism, whose gathers
# may want the loop.
_WHOLE_PRODUCTS = {
    "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}
WITHOUT_TENSOR_PARALLELISM: Mapping[str, Mapping[str, str]] = {"v5e": _WHOLE_PRODUCTS}


# Without it some of XLA's GPU kernels add with atomics, in an order that varies from run to run,
# and autotuning may choose another kernel at the next start. No GPU has run it yet.
DETERMINISTIC: Mapping[str, Mapping[str, str]] = {"gpu": {"xla_gpu_deterministic_ops": "true"}}


def compiler_options(mesh: jax.sharding.Mesh, *, deterministic: bool = False) -> dict[str, str]:
    """Return the compiler options for the devices of a mesh; mostly there are none.

    Args:
        mesh: the device mesh.
        deterministic: ask for bit-identical results at every run, which is slower on GPUs; CPUs and
            TPUs are deterministic anyway.
    """
    device = mesh.devices.flat[0]
    options = dict(DETERMINISTIC.get(device.platform, {})) if deterministic else {}
    chip = chip_of(device.device_kind)
    if chip is None or mesh.shape["tensor"] > 1:
        return options
    return {**options, **WITHOUT_TENSOR_PARALLELISM.get(chip.name, {})}
