"""`t5x_lite doctor`: check the hosts of a run before it starts."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from t5x_lite.checkpoints.checkpointer import CheckpointPolicy
from t5x_lite.console import Console
from t5x_lite.data.data_config import Data
from t5x_lite.distributed import processes
from t5x_lite.doctor import host_facts
from t5x_lite.doctor.diagnosis import Diagnosis, Requirements, collective, diagnose
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import make_mesh
from t5x_lite.planning.memory_estimate import state_bytes
from t5x_lite.training.optimizers import OptimizerConfig

_WORKING_MEMORY = 2**30  # bytes of a process besides the state: programs and batches
_SPARE_DISK = 2**28  # bytes for metrics, TensorBoard events and logs


def doctor(
    *,
    model_dir: str,
    model: TransformerConfig,
    data: Data,
    optimizer: OptimizerConfig,
    batch_size: int,
    mesh: Mapping[str, int],
    checkpoints: CheckpointPolicy,
    cpu_devices: int | None = None,
    devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Check every host of a run and print what is found.

    The arguments are those of `train`, and `devices`.

    Args:
        model_dir: Directory of the run; it must be writable and shared by all hosts.
        model: The architecture, for the size of checkpoints.
        data: The mixture; its vocabulary and sources, or its token stores, must be readable.
        optimizer: The optimizer, for the size of checkpoints.
        batch_size: Rows of the global batch, which must divide over the mesh.
        mesh: Sizes of the mesh axes by name; -1 takes the remaining devices.
        checkpoints: The checkpoints that are kept, for the disk space.
        cpu_devices: Number of simulated CPU devices; None uses the real devices.
        devices: Expected number of devices over all processes; None accepts any number that is
            equal on all hosts.
        describe_config: Returns the configuration as text; all processes must have the same.

    Raises:
        ConfigError: Something is wrong; the message has every problem with its remedy.
    """
    start = time.perf_counter()
    processes.simulate_devices(cpu_devices)
    directory = Path(model_dir).absolute()
    directories = {"MODEL_DIR": directory, "DATA_DIR": Path(data.data_dir).absolute()}
    facts = host_facts.facts(data, describe_config(), directories)
    facts["storage"] = host_facts.storage_problem(directory)
    facts["clock"] = host_facts.clock()
    hosts = processes.gather(facts)
    names = [
        "this host" if processes.count() == 1 else processes.name(number)
        for number in range(processes.count())
    ]
    findings = diagnose(hosts, names, _requirements(model, optimizer, checkpoints, devices))
    if not any(finding.wrong for finding in findings):
        device_mesh = make_mesh(mesh)  # raises ConfigError for a mesh that does not fit
        _check_batch(batch_size, device_mesh)
        findings.append(collective(*host_facts.timed_collective(device_mesh)))
    _show(Console(silent=not processes.is_first()), findings, time.perf_counter() - start)
    if wrong := [finding for finding in findings if finding.wrong]:
        raise ConfigError(
            "; ".join(f"{finding.what}: {finding.seen} ({finding.cure})" for finding in wrong)
            + "; nothing was started"
        )


def _requirements(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    checkpoints: CheckpointPolicy,
    devices: int | None,
) -> Requirements:
    """Return what the run needs.

    The disk must have room for the checkpoints that are kept and one more, which is written before
    an old one is deleted. The memory of a host must have room for its part of the state.
    """
    sizes = state_bytes(model, optimizer, {})
    state = sizes["weights"] + sizes["optimizer state"]
    kept = (checkpoints.keep or 1) + 1
    disk = {"MODEL_DIR": state * kept + _SPARE_DISK, "DATA_DIR": _SPARE_DISK}
    return Requirements(devices, disk, _WORKING_MEMORY + math.ceil(state / processes.count()))


def _check_batch(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    from t5x_lite.partitioning import num_batch_shards

    if batch_size % num_batch_shards(mesh):
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide into the {num_batch_shards(mesh)} parts "
            f"of the mesh",
            "BATCH_SIZE",
            "MESH",
        )


def _show(console: Console, findings: list[Diagnosis], seconds: float) -> None:
    for finding in findings:
        console.print(f"{'WRONG' if finding.wrong else 'ok':<6}{finding.what}: {finding.seen}")
        if finding.wrong:
            console.print(f"      => {finding.cure}")
    wrong = sum(finding.wrong for finding in findings)
    console.print(f"{'ready to run' if not wrong else f'{wrong} wrong'}, {seconds:.1f} s")
