"""What a family of foreign checkpoints has to say for itself."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig

Fields = Mapping[str, Any]

# Hugging Face's names of activations. Its "gelu" is by erf, ours by tanh.
HF_ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "relu": "relu", "silu": "silu"}

# What BERT, RoBERTa, GPT-2 and BART have in common.
LAYER_NORM: dict[str, Any] = dict(
    norm="layer",
    use_bias=True,
    scale_attention=True,
    positions="learned",
    scale_tied_logits=False,
    dropout_shared_along_length=False,
    dropout_after_final_norm=False,
)
POST_NORM: dict[str, Any] = dict(norm_position="post", final_norm=False, embedding_norm=True)


class CheckpointFacts(NamedTuple):
    """What only the tensors of a checkpoint tell, not its config.json."""

    decoder: bool = True
    own_head: bool = False  # a head that is not the embedding once more
    head_bias: bool = False  # one that is not all zeros
    next_sentence: bool = False


class Family(NamedTuple):
    """How config.json and tensor names of one `model_type` are read and written.

    read, write: config.json <-> our configuration; write needs no model_type. prefix: what the
    names of a complete model begin with; base models are saved without it. embedding, head: names
    of the two that may be one. head_bias, next_sentence, decoder: by which names (or beginnings of
    names) these are known. copies: names of tensors that may be there again. ignored: regular
    expressions of names that carry no weights.
    """

    model_type: str
    architecture: Callable[[TransformerConfig], str]
    read: Callable[[Fields, CheckpointFacts], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, Any]]
    table: Callable[[TransformerConfig], MappingTable]
    embedding: str
    head: str
    prefix: str = ""
    outside: tuple[str, ...] = ()
    head_bias: str = ""
    next_sentence: str = ""
    decoder: str = ""
    copies: Mapping[str, str] = {}
    ignored: tuple[str, ...] = ()


def require_fields(fields: Fields, *names: str) -> list[Any]:
    """Values of config.json, or a ConfigError that names what it lacks."""
    if missing := [name for name in names if fields.get(name) is None]:
        raise ConfigError(f"config.json has no {', '.join(missing)}")
    return [fields[name] for name in names]


def reject_unsupported(fields: Fields, **wanted: Any) -> None:
    """Raise ConfigError for a setting of config.json that our models do not have."""
    for name, value in wanted.items():
        if name in fields and fields[name] != value and fields[name] is not None:
            raise ConfigError(f"config.json has {name} {fields[name]!r}; only {value!r} is known")


def specific_rate(fields: Fields, name: str, general: str) -> float | None:
    """A dropout rate (default 0.1), or None where it is the general one."""
    rate = fields.get(name, 0.1)
    return None if rate == fields.get(general, 0.1) else rate


def activation_from_hf(name: str) -> str:
    """Our name of one of Hugging Face's activations."""
    if name not in HF_ACTIVATIONS:
        raise ConfigError(f"config.json has the activation {name!r}; known: {list(HF_ACTIVATIONS)}")
    return HF_ACTIVATIONS[name]


def activation_to_hf(ours: str) -> str:
    """Hugging Face's name of one of our activations."""
    names = {mine: theirs for theirs, mine in HF_ACTIVATIONS.items()}
    if ours not in names:
        raise ConfigError(
            f"the activation {ours!r} has no name over there; known: {list(names)}",
            "TransformerConfig.mlp_activations",
        )
    return names[ours]


def head_dim(emb_dim: int, num_heads: int) -> int:
    """Width of a head where heads share the whole width."""
    if emb_dim % num_heads:
        raise ConfigError(f"config.json has {num_heads} heads for a width of {emb_dim}")
    return emb_dim // num_heads


def check_width(config: TransformerConfig) -> None:
    """Raise ConfigError if heads do not share the whole width."""
    if config.num_heads * config.head_dim != config.emb_dim:
        raise ConfigError(
            f"num_heads * head_dim is {config.num_heads * config.head_dim}; over there it is the "
            f"width, {config.emb_dim}",
            "TransformerConfig.head_dim",
        )
