"""A training step of T5 1.1, ours and that of Hugging Face's PyTorch model, with equal settings.

Full rows of 512 inputs and 114 targets, no dropout, no z-loss, Adafactor on both sides
(transformers' own for PyTorch) at a constant rate. A step of either kind is a callable that returns
the loss before its update, after all of its work is done.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

INPUTS, TARGETS, RATE = 512, 114, 0.01
BATCH, WEIGHTS = "batch.npz", "weights"


def load_config(size: str, **changes: Any):
    """The shipped configuration of a T5 1.1 size, with changes."""
    import gin

    from t5x_lite.cli import gin_config
    from t5x_lite.cli.main import GIN_CONFIGS
    from t5x_lite.models.config import TransformerConfig

    gin_config.parse([f"models/t5_1_1/{size}.gin"], [], ["", str(GIN_CONFIGS)])
    return dataclasses.replace(gin.get_configurable(TransformerConfig)(), **changes)


def torch_fields(config: Any) -> dict[str, Any]:
    """The fields of config.json for Hugging Face's model."""
    from t5x_lite.convert.huggingface import FAMILIES

    return FAMILIES["t5"].write(config)


def write_batch(directory: Path, rows: int, vocab_size: int) -> None:
    """A batch of full rows."""
    random = np.random.default_rng(0)
    np.savez(
        directory / BATCH,
        inputs=random.integers(2, vocab_size - 128, (rows, INPUTS), dtype=np.int32),
        targets=random.integers(2, vocab_size - 128, (rows, TARGETS), dtype=np.int32),
    )


def read_batch(directory: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the first rows."""
    with np.load(directory / BATCH) as arrays:
        return arrays["inputs"][:rows], arrays["targets"][:rows]


def export(directory: Path, config: Any) -> None:
    """Write the weights of key 0, from which ours starts, for PyTorch."""
    import jax

    from t5x_lite.convert.huggingface import export_checkpoint
    from t5x_lite.models.transformer import initialize

    params = jax.jit(lambda key: initialize(config, key))(jax.random.key(0))
    export_checkpoint(directory / WEIGHTS, config, params)


class OurStep:
    """A compiled step of ours on one device; `begin` makes the weights."""

    def __init__(self, config: Any, *, rows: int, logits_chunk: int | None):
        import jax

        from t5x_lite.training.optimizers import Adafactor
        from t5x_lite.training.schedules import Constant
        from t5x_lite.training.setup import build
        from t5x_lite.training.step import Loss

        self._rows = rows
        self._program = build(
            config,
            Adafactor(),
            Constant(value=RATE),
            Loss(z_loss=0.0, logits_chunk=logits_chunk),
            mesh={"data": 1},
            batch_size=rows,
            seed=0,
        )
        numbers = np.zeros((rows, INPUTS), np.int32), np.zeros((rows, TARGETS), np.int32)
        batch = jax.tree.map(self._shape, self._batch(*numbers))
        with jax.set_mesh(self._program.mesh):
            lowered = self._program.step.lower(self._program.abstract, batch)
            self._compiled = lowered.compile(dict(self._program.compiler_options))

    @property
    def bytes(self) -> int:
        """Device memory of a step in bytes, by the compiler's estimate."""
        memory = self._compiled.memory_analysis()
        kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept

    def begin(self, directory: Path) -> None:
        """Make weights and optimizer state, and read the batch."""
        import jax

        with jax.set_mesh(self._program.mesh):
            batch = self._batch(*read_batch(directory, self._rows))
            self._placed = jax.device_put(batch, self._program.batch_sharding)
            self._state = self._program.initial()

    def __call__(self) -> float:
        self._state, metrics = self._compiled(self._state, self._placed)
        numbers = metrics.unpack()
        return float(numbers["loss"]) / float(numbers["weight"])

    def _batch(self, inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
            "decoder_loss_weights": np.ones(targets.shape, np.float32),
        }

    def _shape(self, array: np.ndarray) -> Any:
        import jax

        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self._program.batch_sharding)


class TorchStep:
    """The same for Hugging Face's model, from its directory or the fields of config.json.

    Needs nothing of ours, so that another Python with PyTorch will do.
    """

    def __init__(
        self,
        source: Path | dict[str, Any],
        *,
        device: str = "cpu",
        bfloat16: bool = False,
        compiled: bool = False,
    ):
        import torch
        from transformers import T5Config, T5ForConditionalGeneration
        from transformers.optimization import Adafactor

        self._torch, self._device, self._bfloat16 = torch, device, bfloat16
        if bfloat16:
            torch.set_float32_matmul_precision("high")
        if isinstance(source, Path):
            model = T5ForConditionalGeneration.from_pretrained(source, dropout_rate=0.0)
        else:
            with torch.device(device):
                model = T5ForConditionalGeneration(T5Config(**{**source, "dropout_rate": 0.0}))
        self._model = model.float().to(device).train()
        if compiled:  # block by block: compiling one serves all that are like it
            for block in (*model.encoder.block, *model.decoder.block):
                block.compile()
        self._optimizer = Adafactor(
            model.parameters(),
            lr=RATE,
            scale_parameter=True,
            relative_step=False,
            warmup_init=False,
        )

    def begin(self, directory: Path, rows: int) -> None:
        """Read the batch."""
        self._inputs, self._targets = (
            self._torch.tensor(x, device=self._device).long() for x in read_batch(directory, rows)
        )

    def forget(self) -> None:
        """Free batch and gradients, after a step that did not fit."""
        del self._inputs, self._targets
        self._optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> float:
        with self._torch.autocast(self._device, dtype=self._torch.bfloat16, enabled=self._bfloat16):
            found = self._model(input_ids=self._inputs, labels=self._targets, use_cache=False)
            loss = found.loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()
