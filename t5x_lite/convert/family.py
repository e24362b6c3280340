"""The description of a model family in Hugging Face's format, and helpers to read and write it.

To add a family, write a module `convert/NAME_family.py` with a `Family` for each model type in
`FAMILIES`, and list it in `convert/huggingface.py`. `read` maps the fields of config.json to a
`TransformerConfig`, `write` does the reverse, and `table` maps our parameters to tensor names.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig

Fields = Mapping[str, Any]  # of config.json

# Hugging Face's names of activations, and ours. Its "gelu" uses erf, ours the tanh approximation.
HF_ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "relu": "relu", "silu": "silu"}

# Settings that BERT, RoBERTa, GPT-2 and BART share.
LAYER_NORM: dict[str, Any] = dict(
    norm="layer",
    use_bias=True,
    scale_attention=True,
    positions="learned",
    scale_tied_logits=False,
    dropout_shared_along_length=False,
    dropout_after_final_norm=False,
)
# Settings that BERT, RoBERTa and BART share in addition.
POST_NORM: dict[str, Any] = dict(norm_position="post", final_norm=False, embedding_norm=True)


class CheckpointFacts(NamedTuple):
    """Properties of a checkpoint that its tensors show, and its config.json does not.

    Attributes:
        decoder: Whether it has decoder layers.
        own_head: Whether it has an output kernel that differs from the token embedding.
        head_bias: Whether it has a bias of the logits that is not all zeros.
        next_sentence: Whether it has BERT's next-sentence head.
    """

    decoder: bool = True
    own_head: bool = False
    head_bias: bool = False
    next_sentence: bool = False


class Family(NamedTuple):
    """How config.json and tensors of one `model_type` are read and written.

    Attributes:
        model_type: "model_type" of config.json.
        architecture: Returns the entry of "architectures" in config.json.
        read: Converts config.json to our configuration.
        write: Converts our configuration to the fields of config.json, without model_type.
        table: Returns the tensor names of our parameters.
        embedding: Name of the token embedding.
        head: Name of the output kernel, which may be a copy of the embedding.
        prefix: Prefix of tensor names in a complete model; base models are saved without it.
        outside: Prefixes of the names that have no `prefix` in a complete model.
        head_bias: Name of the bias of the logits, if models may have it; else "".
        next_sentence: Name by which a next-sentence head is recognized; else "".
        decoder: Prefix by which a decoder is recognized; else "".
        copies: Tensors that may be saved twice: name of the copy to name of the original.
        ignored: Regular expressions of tensor names that hold no weights.
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
    """Return values of config.json.

    Args:
        fields: config.json.
        *names: Names of the fields.

    Raises:
        ConfigError: A field is missing or null.
    """
    if missing := [name for name in names if fields.get(name) is None]:
        raise ConfigError(f"config.json has no {', '.join(missing)}")
    return [fields[name] for name in names]


def reject_unsupported(fields: Fields, **supported: Any) -> None:
    """Check that config.json has no setting that our models do not support.

    Args:
        fields: config.json.
        **supported: The only supported value of each field; missing and null fields are accepted.

    Raises:
        ConfigError: A field has another value.
    """
    for name, value in supported.items():
        if name in fields and fields[name] != value and fields[name] is not None:
            raise ConfigError(
                f"config.json has {name} {fields[name]!r}; only {value!r} is supported"
            )


def specific_rate(fields: Fields, name: str, general: str) -> float | None:
    """Return a dropout rate, or None if it equals the general one; both default to 0.1.

    Args:
        fields: config.json.
        name: Name of the rate.
        general: Name of the general rate.
    """
    rate = fields.get(name, 0.1)
    return None if rate == fields.get(general, 0.1) else rate


def activation_from_hf(name: str) -> str:
    """Return our name of an activation; ConfigError for one that is not supported."""
    if name not in HF_ACTIVATIONS:
        raise ConfigError(
            f"config.json has the activation {name!r}; supported: {list(HF_ACTIVATIONS)}"
        )
    return HF_ACTIVATIONS[name]


def activation_to_hf(name: str) -> str:
    """Return Hugging Face's name of an activation; ConfigError for one that it does not have."""
    hf_names = {ours: theirs for theirs, ours in HF_ACTIVATIONS.items()}
    if name not in hf_names:
        raise ConfigError(
            f"the activation {name!r} has no name in Hugging Face's format; supported: "
            f"{list(hf_names)}",
            "TransformerConfig.mlp_activations",
        )
    return hf_names[name]


def head_dim(emb_dim: int, num_heads: int) -> int:
    """Return the width of a head if all heads together are as wide as the residual stream.

    Args:
        emb_dim: Width of the residual stream.
        num_heads: Number of heads.

    Raises:
        ConfigError: The number of heads does not divide the width.
    """
    if emb_dim % num_heads:
        raise ConfigError(f"config.json has {num_heads} heads for a width of {emb_dim}")
    return emb_dim // num_heads


class LayerNormFields(NamedTuple):
    """Names in config.json of what BERT, GPT-2 and BART have in common.

    Attributes:
        emb_dim: Width of the residual stream.
        num_heads: Number of heads.
        mlp_dim: Width of the feed-forward's hidden layer.
        max_positions: Number of positions.
        activation: Activation of the feed-forward.
        init_std: Standard deviation of the initializers.
        dropout: General dropout rate.
        attention_dropout: Dropout rate of attention weights.
    """

    emb_dim: str
    num_heads: str
    mlp_dim: str
    max_positions: str
    activation: str
    init_std: str
    dropout: str
    attention_dropout: str


def read_layer_norm_fields(
    fields: Fields, names: LayerNormFields, *, default_activation: str
) -> dict[str, Any]:
    """Read what BERT, GPT-2 and BART have in common.

    Args:
        fields: config.json.
        names: The family's names.
        default_activation: Hugging Face's name of the activation if config.json has none.

    Returns:
        Arguments of `TransformerConfig`.
    """
    vocab_size, emb_dim, num_heads, max_positions = require_fields(
        fields, "vocab_size", names.emb_dim, names.num_heads, names.max_positions
    )
    activation = fields.get(names.activation, default_activation)
    return dict(
        **LAYER_NORM,
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim(emb_dim, num_heads),
        mlp_dim=fields.get(names.mlp_dim),
        max_positions=max_positions,
        mlp_activations=(activation_from_hf(activation),),
        init_std=fields.get(names.init_std, 0.02),
        dropout_rate=fields.get(names.dropout, 0.1),
        attention_dropout_rate=specific_rate(fields, names.attention_dropout, names.dropout),
        mlp_dropout_rate=0.0,
    )


def write_layer_norm_fields(config: TransformerConfig, names: LayerNormFields) -> dict[str, Any]:
    """Write what BERT, GPT-2 and BART have in common.

    Args:
        config: Our configuration.
        names: The family's names.

    Returns:
        Fields of config.json.

    Raises:
        ConfigError: The heads together are not as wide as the residual stream.
    """
    if config.num_heads * config.head_dim != config.emb_dim:
        raise ConfigError(
            f"num_heads * head_dim is {config.num_heads * config.head_dim}; Hugging Face's format "
            f"requires emb_dim, {config.emb_dim}",
            "TransformerConfig.head_dim",
        )
    attention_dropout = config.attention_dropout_rate
    return {
        "vocab_size": config.vocab_size,
        names.emb_dim: config.emb_dim,
        names.num_heads: config.num_heads,
        names.mlp_dim: config.mlp_dim,
        names.max_positions: config.max_positions,
        names.activation: activation_to_hf(config.mlp_activations[0]),
        names.init_std: config.init_std or 0.02,
        names.dropout: config.dropout_rate,
        names.attention_dropout: (
            config.dropout_rate if attention_dropout is None else attention_dropout
        ),
    }
