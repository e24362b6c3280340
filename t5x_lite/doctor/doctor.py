"""`t5x_lite doctor`: whether the hosts of a run are fit for it, before the first step."""

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
from t5x_lite.doctor.diagnosis import Diagnosis, Wanted, collective, diagnose
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import make_mesh
from t5x_lite.planning.roofline import state_bytes
from t5x_lite.training.optimizers import OptimizerConfig

_WORKING_MEMORY = 2**30  # of a process besides the state: the program, data on its way
_SPARE_ROOM = 2**28  # metrics, events, the launch's record


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
    """Look at every host of a run; raise ConfigError with all that is wrong and its cure.

    The arguments are those of `train`. devices: how many must be there over all processes; None
    takes what is there.
    """
    began = time.perf_counter()
    processes.simulate_devices(cpu_devices)
    directory = Path(model_dir).absolute()
    places = {"MODEL_DIR": directory, "DATA_DIR": Path(data.data_dir).absolute()}
    said = host_facts.facts(data, describe_config(), places)
    said["storage"] = host_facts.shared_and_writable(directory)
    said["clock"] = host_facts.clock()
    hosts = processes.gather(said)
    names = [
        "this host" if processes.count() == 1 else processes.name(number)
        for number in range(processes.count())
    ]
    findings = diagnose(hosts, names, _wanted(model, optimizer, checkpoints, devices))
    if not any(finding.wrong for finding in findings):
        whole = make_mesh(mesh)  # says itself what is wrong with a mesh
        _check_batch(batch_size, whole)
        findings.append(collective(*host_facts.timed_collective(whole)))
    _tell(Console(silent=not processes.is_first()), findings, time.perf_counter() - began)
    if wrong := [finding for finding in findings if finding.wrong]:
        raise ConfigError(
            "; ".join(f"{each.what}: {each.seen} ({each.cure})" for each in wrong)
            + "; nothing was started"
        )


def _wanted(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    checkpoints: CheckpointPolicy,
    devices: int | None,
) -> Wanted:
    """Room for the checkpoints that are kept and one more; memory to hold a host's part of one."""
    sizes = state_bytes(model, optimizer, {})
    state = sizes["weights"] + sizes["optimizer state"]
    kept = (checkpoints.keep or 1) + 1
    room = {"MODEL_DIR": state * kept + _SPARE_ROOM, "DATA_DIR": _SPARE_ROOM}
    return Wanted(devices, room, _WORKING_MEMORY + math.ceil(state / processes.count()))


def _check_batch(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    from t5x_lite.partitioning import num_batch_shards

    if batch_size % num_batch_shards(mesh):
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide into the {num_batch_shards(mesh)} parts "
            f"of the mesh",
            "BATCH_SIZE",
            "MESH",
        )


def _tell(console: Console, findings: list[Diagnosis], seconds: float) -> None:
    for finding in findings:
        console.print(f"{'WRONG' if finding.wrong else 'ok':<6}{finding.what}: {finding.seen}")
        if finding.wrong:
            console.print(f"      => {finding.cure}")
    wrong = sum(finding.wrong for finding in findings)
    console.print(f"{'ready to run' if not wrong else f'{wrong} wrong'}, {seconds:.1f} s")
