"""`t5x_lite train`: the one call that makes a mesh, a state and a stream, and runs the step."""

import contextlib
import resource
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from t5x_lite.checkpoints import CheckpointPolicy, Checkpoints
from t5x_lite.data import converters
from t5x_lite.data.baselines import target_baselines
from t5x_lite.data.converters import Converter
from t5x_lite.data.plan import Data, Plan, prepare
from t5x_lite.data.stream import Stream
from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.run.console import Console, duration
from t5x_lite.run.held_out import Evaluation, HeldOut
from t5x_lite.run.loop import Run
from t5x_lite.run.meter import Work
from t5x_lite.run.profiling import Profile, Profiler
from t5x_lite.run.program import Program, build
from t5x_lite.run.record import check_model_dir, write_launch
from t5x_lite.run.results import read_results, show_results, write_results
from t5x_lite.run.start import InitFrom, check_init_from
from t5x_lite.run.startup import Startup
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.step import Loss, Update
from t5x_lite.training.writers import EVENTS


def train(
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
    evaluation: Evaluation,
    checkpoints: CheckpointPolicy,
    init_from: InitFrom | None = None,
    loss_on_inputs: bool = False,
    log_every_steps: int = 20,
    profile: Profile = Profile(),  # noqa: B008 frozen
    seed: int = 0,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Train until `steps` steps are done; the newest checkpoint of `model_dir` is gone on from.

    batch_size: rows of the global batch, over all devices. mesh: sizes of mesh axes, -1 for the
    rest. seed: of the initial weights and of dropout; the order of the data has `data.seed`.
    init_from: whose weights a run without checkpoints starts with. loss_on_inputs: a decoder
    without an encoder learns its inputs too. cpu_devices: simulate so many devices on a CPU.
    profile: which steps to trace. describe_config: gives the text that is saved beside the
    checkpoints as the operative configuration.

    Raises ConfigError, before anything expensive, for settings that cannot work together.
    """
    startup = Startup()
    directory = Path(model_dir)
    if steps < 1 or log_every_steps < 1:
        raise ConfigError(
            "steps and log_every_steps must be at least 1", "train.steps", "TRAIN_STEPS"
        )
    check_model_dir(directory, model)
    if cpu_devices not in (None, jax.config.jax_num_cpu_devices):  # pyright: ignore
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    program = build(
        model, optimizer, learning_rate, loss, update, mesh=mesh, batch_size=batch_size, seed=seed
    )
    if init_from is not None and not (directory / "checkpoints").exists():
        check_init_from(init_from, program.abstract.params)
    console = Console(silent=jax.process_index() != 0)
    startup.lap("import")
    plan = prepare(data, report=console.note)
    check_vocabulary(plan, model)
    check_tasks(plan, model)
    settings = {
        "feature_lengths": data.feature_lengths,
        "batch_size": batch_size,
        "seed": data.seed,
        "sentinels": plan.vocabulary().sentinels,
        "converter": _converter(model, loss_on_inputs=loss_on_inputs),
    }
    stream = Stream(
        plan.train_tasks(),
        **settings,
        pack=data.pack,
        exhaustion=data.exhaustion,
        num_epochs=data.num_epochs,
        in_blocks=data.tokenise == "while_training",
    )
    startup.lap("data")
    directory.mkdir(parents=True, exist_ok=True)
    with (
        jax.set_mesh(program.mesh),
        Checkpoints(directory, checkpoints) as saved,
        contextlib.closing(plan),
    ):
        held_out = _held_out(program, plan, evaluation, settings)
        run = Run(program, stream, held_out, saved, console, directory, startup)
        console.note(
            f"model: {transformer.num_parameters(model):,} parameters in {directory}; mesh: "
            + ", ".join(f"{name} {size}" for name, size in program.mesh.shape.items() if size > 1)
        )
        run.begin(init_from, steps)
        write_launch(directory, model, start_step=run.step, describe_config=describe_config)
        if run.step < steps:
            work = Work.of(model, program.mesh, batch_size, data.feature_lengths)
            with Profiler(profile, directory / EVENTS, console) as profiler:
                run.train(steps, evaluation.every_steps, log_every_steps, work, profiler)
        results = read_results(directory)
        if results is None or results["step"] != run.step:
            results = run.results(_baselines(plan, evaluation, settings))
            write_results(directory, results)
        show_results(console, directory, results)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        console.note(
            f"{run.step:,} steps, {duration(results['seconds'])} of training; "
            f"peak memory of this process {peak:.2f} GiB"
        )


def check_vocabulary(plan: Plan, model: TransformerConfig) -> None:
    """Raise ConfigError if the data holds token ids that the model's embedding has no row for."""
    vocabulary = plan.vocabulary()
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} ids but the model's embedding only "
            f"{model.vocab_size} rows; wanted at least {vocabulary.size}, best "
            f"{vocabulary.padded_size} (a multiple of 128)",
            "TransformerConfig.vocab_size",
        )


def check_tasks(plan: Plan, model: TransformerConfig) -> None:
    """Raise ConfigError if a model without a decoder is to learn what it cannot say."""
    for task in [*plan.train_tasks(), *plan.validation_tasks()] if model.encoder_only else ():
        if "weights" not in getattr(task.objective, "beside_inputs", ()):
            has = "no objective" if task.objective is None else type(task.objective).__name__
            raise ConfigError(
                f"a model without a decoder predicts masked tokens where they stand, and task "
                f"{task.name!r} has {has}: wanted text under one of objectives/bert*.gin",
                "MIXTURE_OR_TASK_NAME",
                "OBJECTIVE",
            )


def _held_out(
    program: Program, plan: Plan, evaluation: Evaluation, settings: dict[str, Any]
) -> HeldOut:
    return HeldOut(
        program.graphdef,
        plan.validation_tasks(),
        plan.vocabulary(),
        evaluation,
        batch_sharding=program.batch_sharding,
        replicated=program.replicated,
        stream_settings=settings,
    )


def _converter(model: TransformerConfig, *, loss_on_inputs: bool) -> Converter:
    """How features become what this kind of model takes."""
    if model.encoder_only:
        return partial(
            converters.encoder_only,
            token_types=model.num_token_types > 1,
            next_sentence=model.next_sentence_head,
        )
    if not model.decoder_only:
        return converters.encoder_decoder
    visible = model.prefix_attention
    return partial(converters.decoder_only, prefix_visible=visible, loss_on_inputs=loss_on_inputs)


def _baselines(plan: Plan, evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    same = {name: settings[name] for name in ("feature_lengths", "sentinels", "seed")}
    train_tasks = {task.name: task for task in plan.train_tasks()}
    return {
        task.name: target_baselines(
            train_tasks.get(task.name, task),
            task,
            **same,
            vocabulary_size=plan.vocabulary().size,
            validation_limit=evaluation.max_examples,
        )
        for task in plan.validation_tasks()
    }
