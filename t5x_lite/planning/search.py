"""Search mesh, remat policy and batch size: arithmetic ranks, the compiler decides."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5x_lite.console import count
from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import Topology
from t5x_lite.models.config import REMAT_POLICIES, TransformerConfig
from t5x_lite.models.flops import TRAINING, forward_flops
from t5x_lite.planning import memory_estimate, roofline
from t5x_lite.planning.lowering import Setting, batch_shapes, summed_loss
from t5x_lite.planning.plan_report import table
from t5x_lite.planning.plan_step import Planned, plan_step

_LOG = logging.getLogger(__name__)
_MOST_TENSOR = 8  # beyond it, shards of T5's sub-layers are narrower than a chip's matrix unit
# Work of a training step in forward passes, by remat policy: 3, and what is recomputed.
_PASSES = {"none": 3.0, "minimal": 3.1, "full": 4.0}


class Candidate(NamedTuple):
    """A setting that the search considers.

    Attributes:
        setting: The setting.
        seconds: Analytic step time.
        bytes: Analytic memory of a device.
        planned: Its plan, if it was compiled.
    """

    setting: Setting
    seconds: float
    bytes: float
    planned: Planned | None = None

    def rate(self, machine: Topology) -> float:
        """Return tokens per second and chip; 0 if the compiled program does not fit.

        It uses the upper end of the compiled step time, or else the analytic step time.
        """
        plan = self.planned and self.planned.plan
        if plan and plan["estimate"] is None:
            return 0.0
        seconds = plan["estimate"]["step_seconds"][1] if plan else self.seconds
        rows = self.setting.batch_size
        return rows * sum(self.setting.lengths.values()) / seconds / machine.chips


def search(
    setting: Setting,
    machine: Topology,
    training_tokens: float,
    cache: Path,
    *,
    compile_best: int,
) -> tuple[str, Candidate]:
    """Try meshes, remat policies, and half, one and two times the batch size.

    Candidates that do not fit by arithmetic are dropped. The fastest of the others are compiled,
    and the best of these is chosen.

    Args:
        setting: The setting to start from.
        machine: The topology.
        training_tokens: Tokens of the whole training.
        cache: Directory of compiled programs.
        compile_best: Number of candidates to compile.

    Returns:
        A report as Markdown, and the best candidate.

    Raises:
        ConfigError: No candidate fits.
    """
    limit = machine.chip.hbm / machine.chip.devices
    candidates = list(_candidates(setting, machine))
    fitting = sorted((c for c in candidates if c.bytes <= limit), key=lambda c: -c.rate(machine))
    _LOG.info(
        f"{count(len(candidates), 'candidate')}, {len(fitting):,} of them fit by arithmetic; "
        f"compiling "
        f"the fastest {min(compile_best, len(fitting))}"
    )
    tried = []
    for number, candidate in enumerate(fitting):
        if number < compile_best:
            planned = plan_step(candidate.setting, machine, training_tokens, cache)
            candidate = candidate._replace(planned=planned)
        tried.append(candidate)
    ordered = sorted(tried, key=lambda c: (c.planned is None, -c.rate(machine)))
    if not ordered or ordered[0].rate(machine) == 0.0:
        raise ConfigError(
            f"no mesh, remat policy or batch that was tried fits {machine.name}; use more chips, "
            f"a smaller BATCH_SIZE or a smaller model",
            "BATCH_SIZE",
            "plan.topology_name",
        )
    text = f"## Search\n\n{_table(ordered, machine)}\n\n{_gin_lines(ordered[0].setting)}\n"
    return text, ordered[0]


def meshes(model: TransformerConfig, devices: int) -> Iterator[dict[str, int]]:
    """Yield meshes of data, fsdp, tensor and expert axes, in powers of two, that divide a model."""
    powers = [2**i for i in range(devices.bit_length())]
    experts = model.moe.num_experts if model.moe else 1
    for tensor in (p for p in powers if p <= _MOST_TENSOR and _divides(p, model)):
        for expert in (p for p in powers if experts % p == 0):
            for fsdp in (p for p in powers if model.emb_dim % p == 0):
                data, rest = divmod(devices, tensor * expert * fsdp)
                if rest == 0 and data:
                    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "expert": expert}
                    yield {name: size for name, size in sizes.items() if size > 1} or {"data": 1}


def _divides(tensor: int, model: TransformerConfig) -> bool:
    """Return whether a tensor axis of this size divides heads, MLP and vocabulary."""
    heads = math.gcd(model.num_heads, model.kv_heads)
    return not (heads % tensor or model.mlp_dim % tensor or model.vocab_size % tensor)


def _candidates(setting: Setting, machine: Topology) -> Iterator[Candidate]:
    batches = sorted({setting.batch_size // 2, setting.batch_size, setting.batch_size * 2} - {0})
    for remat in REMAT_POLICIES:
        model = dataclasses.replace(setting.model, remat=remat)
        bytes_per_row = _activation_bytes_per_row(model, setting)
        for mesh in meshes(model, machine.devices):
            parts = math.prod(mesh.get(name, 1) for name in ("data", "fsdp", "expert"))
            state = memory_estimate.state_bytes(model, setting.optimizer, mesh)
            for rows in (batch for batch in batches if batch % parts == 0):
                candidate = setting._replace(model=model, mesh=mesh, batch_size=rows)
                activations = int(bytes_per_row * rows / parts)
                seconds = _seconds(candidate, machine, state, activations)
                yield Candidate(candidate, seconds, sum(state.values()) + activations)


def _activation_bytes_per_row(model: TransformerConfig, setting: Setting) -> float:
    rows = 8
    batch = batch_shapes(model, setting.lengths, rows, packed=setting.packed)
    return memory_estimate.activation_bytes(model, batch, {}, summed_loss(model)) / rows


def _seconds(
    setting: Setting, machine: Topology, state: Mapping[str, int], activations: int
) -> float:
    """Return the analytic step time, with the FLOPs that are recomputed."""
    forward = forward_flops(
        setting.model, batch_size=setting.batch_size, lengths=setting.lengths
    ).executed
    bounds = roofline.roofline(
        machine.chip,
        setting.model,
        mesh=setting.mesh,
        step_flops=forward * _PASSES.get(str(setting.model.remat), TRAINING),
        tokens=setting.batch_size * sum(setting.lengths.values()),
        state=state,
        activations=activations,
    )
    return max(bounds)


def _table(candidates: Sequence[Candidate], machine: Topology) -> str:
    rows = []
    for candidate in candidates[:20]:
        plan: dict[str, Any] | None = candidate.planned and candidate.planned.plan
        size = plan["memory"]["total"] if plan else candidate.bytes
        rate = candidate.rate(machine)
        mesh = ", ".join(f"{name} {n}" for name, n in candidate.setting.mesh.items())
        rows.append(
            (
                mesh,
                str(candidate.setting.model.remat),
                f"{candidate.setting.batch_size:,}",
                f"{size / 1e9:.2f}",
                f"{rate:,.0f}" if rate else "does not fit",
                "compiler" if plan else "arithmetic",
            )
        )
    columns = ("mesh", "remat", "batch", "GB a device", "tokens/s a chip (estimated)", "by")
    return table(columns, rows)


def _gin_lines(setting: Setting) -> str:
    lines = [
        f"MESH = {dict(setting.mesh)}",
        f"BATCH_SIZE = {setting.batch_size}",
        f"TransformerConfig.remat = {setting.model.remat!r}",
    ]
    return "The best, in gin:\n\n```\n" + "\n".join(lines) + "\n```"
