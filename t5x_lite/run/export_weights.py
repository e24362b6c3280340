"""`t5x_lite export`: the weights of a run become a Hugging Face directory."""

from collections.abc import Callable
from pathlib import Path

import jax

from t5x_lite.checkpoints import Checkpoints
from t5x_lite.convert.huggingface import export_checkpoint
from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.run.console import Console
from t5x_lite.run.record import MODEL
from t5x_lite.run.start import chosen_step
from t5x_lite.untrusted import read_json


def export_weights(
    *,
    model_dir: str,
    destination: str,
    step: int | None = None,
    model_type: str | None = None,
    encoder_only: bool = False,
    vocab_size: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Write config.json and safetensors, read them again, and compare logits.

    step: which checkpoint; None is the newest. model_type: transformers' name of the family, or
    None for the first that is this model. encoder_only: without decoder and head. vocab_size: rows
    of the embedding, cut off or filled up with zeros; None keeps them. If the logits differ,
    nothing is left at `destination`.
    """
    directory = Path(model_dir)
    config = recorded_model(directory)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: leaf.update(sharding=place), transformer.abstract(config)[1]
    )
    with Checkpoints(directory) as saved:
        step = chosen_step(saved, step, "MODEL_DIR", "export_weights.step")
        params = saved.restore_weights(step, abstract)
    family = export_checkpoint(
        destination,
        config,
        params,
        model_type=model_type,
        encoder_only=encoder_only,
        vocab_size=vocab_size,
    )
    Console().note(
        f"step {step:,} of {directory} is {destination}, a {family} of transformers; read again, "
        f"it gives the same logits"
    )


def recorded_model(model_dir: Path) -> TransformerConfig:
    """The configuration that a run wrote into its directory."""
    path = model_dir / MODEL
    try:
        fields = read_json(path, most_bytes=1 << 20)
        moe = fields.pop("moe", None)
        fields["moe"] = None if moe is None else MixtureOfExperts(**moe)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return TransformerConfig(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not tell a run's model: {error}", "MODEL_DIR") from error
