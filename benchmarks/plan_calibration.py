"""Compare the TPU compiler's estimate with a published run: the deviation in docs/planning.md.

    python benchmarks/plan_calibration.py      (needs libtpu and a few minutes)

MaxText publishes 132 TFLOP/s per chip for a decoder of 32 billion weights on 256 chips of v5e
(its configs/tpu/v5e/README.md): 8,192 wide, 64 heads of 128, gated feed-forward of 28,672, 32
layers, 4 rows of 2,048 tokens per chip, full rematerialization, FSDP. Its attention is a fused
kernel, for which the compiler has no estimate; ours keeps scores in memory, at one row per chip
so that they fit. So the attention core is subtracted from the estimate and added again at the
chip's peak.
"""

from pathlib import Path

import jax

from t5x_lite import log_setup
from t5x_lite.hardware.chips import Chip
from t5x_lite.hardware.topologies import topology
from t5x_lite.models.config import TransformerConfig
from t5x_lite.planning.costs import Cost
from t5x_lite.planning.lowering import Setting
from t5x_lite.planning.plan_step import Planned, plan_step
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.step import Loss, Update

PUBLISHED = 132e12  # FLOP/s a chip
CACHE = Path("~/.cache/t5x_lite/plans").expanduser()
SETTING = Setting(
    model=TransformerConfig(
        vocab_size=32_000,
        emb_dim=8192,
        num_heads=64,
        head_dim=128,
        mlp_dim=28_672,
        num_decoder_layers=32,
        mlp_activations=("silu", "linear"),
        positions="rotary",
        remat="full",
    ),
    optimizer=Adafactor(),
    learning_rate=InverseSquareRoot(base=1.0, warmup_steps=10_000),
    loss=Loss(),
    update=Update(),
    mesh={"fsdp": 256},
    batch_size=256,
    lengths={"inputs": 0, "targets": 2048},
    packed=True,
    mode="train",
    compiler_options={
        "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
        "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
    },
)


def in_attention_core(cost: Cost) -> bool:
    """Scores, softmax and weighted sums: attention without its projections."""
    return cost.module == "Attention._weigh"


def calibrate(planned: Planned, chip: Chip) -> dict[str, float]:
    """Seconds of a step as published and as estimated, and their ratio."""
    assert chip.clock is not None
    plan = planned.plan
    flops = plan["flops"]["model_per_step"] / plan["topology"]["chips"]
    core = [cost for cost in planned.costs if in_attention_core(cost)]
    core_seconds = sum(cost.cycles for cost in core) / chip.clock
    core_at_peak = sum(cost.flops for cost in core) / chip.peak
    estimated = plan["compute"]["seconds"] - core_seconds + core_at_peak
    return {
        "published": flops / PUBLISHED,
        "estimated": estimated,
        "with scores in memory": plan["compute"]["seconds"],
        "measured / estimated": flops / PUBLISHED / estimated,
    }


@log_setup.to_terminal()
def main() -> None:
    """Print the comparison."""
    jax.config.update("jax_platforms", "cpu")
    wanted = topology("v5e:16x16")
    planned = plan_step(SETTING, wanted, 1e12, CACHE)
    if not planned.costs:
        print(f"does not fit: {planned.plan['memory']}")
        return
    for name, value in calibrate(planned, wanted.chip).items():
        print(f"{name:<24} {value:.3f}")
    print(f"memory of a chip, GB     {planned.plan['memory']['total'] / 1e9:.2f}")


if __name__ == "__main__":
    main()
