"""Set up a run before its first step: mesh, compiled functions and data, for train and replay."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import jax
from etils import epath

from t5x_lite import log_setup
from t5x_lite.checkpoints.run_directory import check_model_dir
from t5x_lite.console import Console
from t5x_lite.data.data_config import Data
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.trainer.goodput import StartupTimer
from t5x_lite.trainer.resume import InitFrom, check_init_from, last_step
from t5x_lite.trainer.step_hashes import StepHashes
from t5x_lite.training.inputs import TrainInputs, make_inputs
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.setup import TrainSetup, build
from t5x_lite.training.step import Loss, Update


class PreparedRun(NamedTuple):
    """A run whose program and data are set up, before its directory is read or written.

    Args:
        directory: The run's directory, which need not exist.
        model: The model's configuration.
        program: The functions of a step, the shapes of the state, and the mesh.
        feed: The training stream and the plan of the data.
        loss: What a step minimizes.
        update: How gradients become new weights.
        seed: Seed of the initial weights and of dropout.
        steps: The step at which the run ends; with `init_from.keep_step` it counts on.
        init_from: Whose weights a run without checkpoints starts with.
        console: Prints on the first process, and is silent on the others.
        startup: Measures the parts of the start.
    """

    directory: epath.Path
    model: TransformerConfig
    program: TrainSetup
    feed: TrainInputs
    loss: Loss
    update: Update
    seed: int
    steps: int
    init_from: InitFrom | None
    console: Console
    startup: StartupTimer


@contextmanager
def prepare_run(
    *,
    model_dir: str,
    model: TransformerConfig,
    data: Data,
    optimizer: OptimizerConfig,
    learning_rate: Schedule,
    batch_size: int,
    steps: int,
    mesh: Mapping[str, int],
    loss: Loss,
    update: Update,
    init_from: InitFrom | None = None,
    loss_on_inputs: bool = False,
    step_hashes: StepHashes = StepHashes(),  # noqa: B008 frozen
    seed: int = 0,
    deterministic: bool = False,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
    write_log: bool = False,
) -> Iterator[PreparedRun]:
    """Set up a run; inside the context the mesh is set and the data is open.

    The parameters are those of `trainer.train.train`, and `write_log`: whether the first process
    appends its log lines to a file in the run's directory, once that exists. Nothing else is
    written.

    Yields:
        The prepared run.

    Raises:
        ConfigError: Settings that cannot work together, before anything expensive.
    """
    startup, directory = StartupTimer(), epath.Path(model_dir)
    if steps < 1:
        raise ConfigError(f"steps is {steps}; expected 1 or more", "train.steps", "TRAIN_STEPS")
    check_model_dir(directory, model)
    processes.simulate_devices(cpu_devices)
    program = build(
        model,
        optimizer,
        learning_rate,
        loss,
        update,
        mesh=mesh,
        batch_size=batch_size,
        seed=seed,
        fingerprint_every=step_hashes.fingerprint_every,
        deterministic=deterministic,
    )
    if init_from is not None and not (directory / "checkpoints").exists():
        check_init_from(init_from, program.abstract.params)
    steps = last_step(directory, init_from, steps, program.abstract.params)
    processes.check_same("their configuration", describe_config().splitlines())
    console = Console(silent=not processes.is_first())
    startup.lap("import")
    with ExitStack() as stack:
        if write_log and processes.is_first():
            stack.enter_context(log_setup.to_run_directory(directory))
        feed = make_inputs(data, model, batch_size=batch_size, loss_on_inputs=loss_on_inputs)
        startup.lap("data")
        stack.enter_context(jax.set_mesh(program.mesh))
        stack.enter_context(closing(feed.plan))
        yield PreparedRun(
            directory,
            model,
            program,
            feed,
            loss,
            update,
            seed,
            steps,
            init_from,
            console,
            startup,
        )
