"""Cross-entropy from hidden states and its gradient, computed for a chunk of tokens at a time.

The logits of a batch are by far its largest array: with mT5's vocabulary, 250,000 numbers a token.
Here the logits of one chunk exist at a time. Autodiff of a plain loss would keep all of them for
the backward pass; a custom gradient computes the gradients of hidden states, kernel and bias in the
forward pass instead, while a chunk's logits are in memory, and the backward pass only scales them.

Array names: b batch, l length, e embed, v this device's part of the vocabulary, n tokens of a
chunk, c chunks.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.partitioning import mesh_axes, pad_to_multiple, partition_spec
from t5x_lite.training.losses import (
    LogitStats,
    LossSums,
    TokenLossConfig,
    smoothed_targets,
    sum_losses,
    token_losses,
)


class OutputSpec(NamedTuple):
    """How hidden states become logits: scale * (hidden @ kernel) + bias.

    Attributes:
        vocab_first: The kernel is [vocab, embed], as a tied embedding is; else [embed, vocab].
        scale: Factor of the logits; T5 1.0 scales tied logits by emb_dim**-0.5.
    """

    vocab_first: bool = False
    scale: float = 1.0


def chunked_cross_entropy(
    hidden_ble: jax.Array,
    kernel: jax.Array,
    bias_v: jax.Array | None,
    targets_bl: jax.Array,
    weights_bl: jax.Array,
    normalized_weights_bl: jax.Array,
    tasks_bl: jax.Array | None = None,
    *,
    output: OutputSpec,
    config: TokenLossConfig,
    chunk_size: int,
    num_tasks: int = 0,
) -> tuple[jax.Array, LossSums]:
    """Compute the objective and loss sums without materializing the logits of the batch.

    Only the first result has a gradient, and only with respect to hidden states, kernel and bias.
    Forward and backward take three matrix products in all, as many as with whole logits. Products
    are computed in the type of `hidden_ble` and accumulated in float32.

    Under a mesh every device works on its own tokens and its own part of the vocabulary. Devices
    exchange a few numbers per token, and each gradient once.

    Args:
        hidden_ble: Hidden states [batch, length, embed].
        kernel: Output kernel, [vocab, embed] or [embed, vocab] (`OutputSpec.vocab_first`).
        bias_v: Bias of the logits [vocab], or None.
        targets_bl: Target token ids [batch, length].
        weights_bl: Loss weights [batch, length] of the returned sums.
        normalized_weights_bl: Loss weights [batch, length] of the objective
            (`losses.normalize_weights`).
        tasks_bl: Task index of each token [batch, length], needed if `num_tasks` is set.
        output: How hidden states become logits.
        config: z-loss and label smoothing.
        chunk_size: Largest number of tokens per device whose logits, in float32, exist at once.
        num_tasks: Sum separately for each of this many tasks; 0 sums over all tokens.

    Returns:
        The objective, sum(normalized weight * loss), and sums by `weights_bl`.
    """
    settings = _Settings(output, config, chunk_size, num_tasks)
    tokens = _Tokens(targets_bl, weights_bl, normalized_weights_bl, tasks_bl if num_tasks else None)
    return _objective(settings, hidden_ble, kernel, bias_v, tokens)


class _Settings(NamedTuple):
    output: OutputSpec
    config: TokenLossConfig
    chunk_size: int
    num_tasks: int


class _Tokens(NamedTuple):
    """Arrays with one element per token: [b, l] or, within a chunk, [n]."""

    targets: Any
    weights: Any
    normalized_weights: Any
    tasks: Any


class _Gradients(NamedTuple):
    """Gradients of the objective, or their PartitionSpecs."""

    hidden: Any
    kernel: Any
    bias: Any


class _MeshAxes(NamedTuple):
    """Mesh axes that split tokens, and those that split the vocabulary; none outside a mesh."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _objective(settings: _Settings, hidden_ble, kernel, bias_v, tokens):
    return _loss_on_mesh(settings, hidden_ble, kernel, bias_v, tokens, with_gradients=False)[0]


def _objective_forward(settings: _Settings, hidden_ble, kernel, bias_v, tokens):
    # The residuals of the backward pass are the gradients themselves.
    return _loss_on_mesh(settings, hidden_ble, kernel, bias_v, tokens, with_gradients=True)


def _objective_backward(_: _Settings, gradients: _Gradients, cotangents):
    objective_cotangent, _ = cotangents  # the sums are metrics: nothing is differentiated by them
    scale = lambda g: g * objective_cotangent.astype(g.dtype)  # noqa: E731
    return *jax.tree.map(scale, gradients), None


_objective.defvjp(_objective_forward, _objective_backward)


def _loss_on_mesh(settings: _Settings, hidden_ble, kernel, bias_v, tokens, *, with_gradients: bool):
    """Run `_device_loss` on every device of the mesh, or once where there is no mesh.

    Returns ((objective, sums), gradients); the gradients are None without `with_gradients`.
    """
    # The cast comes before the all-gather over the embed axis: half the bytes of float32.
    kernel = kernel.astype(hidden_ble.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _device_loss(
            settings, _MeshAxes(), hidden_ble, kernel, bias_v, tokens, with_gradients=with_gradients
        )
    axes = _MeshAxes(mesh_axes("batch") + mesh_axes("length"), mesh_axes("vocab"))
    kernel_axes = ("vocab", "embed") if settings.output.vocab_first else ("embed", "vocab")
    # Each device needs whole columns of its part of the vocabulary, so embed is gathered.
    gathered_axes = tuple(None if name == "embed" else name for name in kernel_axes)
    kernel_spec, bias_spec = partition_spec(kernel_axes), partition_spec(("vocab",))
    hidden_spec = partition_spec(("batch", "length", None))
    token_spec = partition_spec(("batch", "length"))

    def on_device(hidden_ble, kernel, bias_v, tokens):
        values, gradients = _device_loss(
            settings, axes, hidden_ble, kernel, bias_v, tokens, with_gradients=with_gradients
        )
        values = jax.tree.map(lambda x: jax.lax.psum(x, axes.tokens), values)
        if gradients is not None:
            gradients = _Gradients(
                gradients.hidden,
                _sum_and_scatter(axes.tokens, gradients.kernel, kernel_spec),
                None
                if gradients.bias is None
                else _sum_and_scatter(axes.tokens, gradients.bias, bias_spec),
            )
        return values, gradients

    # shard_map needs a length that the sequence axis divides; added tokens have weight 0.
    length = hidden_ble.shape[1]
    length_shards = math.prod(mesh.shape[a] for a in mesh_axes("length"))
    hidden_ble, tokens = jax.tree.map(
        lambda x: pad_to_multiple(x, 1, length_shards), (hidden_ble, tokens)
    )
    values, gradients = jax.shard_map(
        on_device,
        in_specs=(hidden_spec, partition_spec(gathered_axes), bias_spec, token_spec),
        out_specs=(
            PartitionSpec(),
            _Gradients(hidden_spec, kernel_spec, bias_spec) if with_gradients else None,
        ),
        check_vma=False,
    )(hidden_ble, kernel, bias_v, tokens)
    return values, gradients and gradients._replace(hidden=gradients.hidden[:, :length])


def _device_loss(
    settings: _Settings,
    axes: _MeshAxes,
    hidden_ble,
    kernel,
    bias_v,
    tokens,
    *,
    with_gradients: bool,
):
    """Sum the loss of one device's tokens, and its gradients, over chunks with a scan."""
    num_tokens = hidden_ble.shape[0] * hidden_ble.shape[1]
    # Chunks of equal size, the largest that is at most `chunk_size`: fewest padding tokens.
    num_chunks = -(-num_tokens // settings.chunk_size)
    size = -(-num_tokens // num_chunks)

    def split(x: jax.Array) -> jax.Array:
        """[b, l, ...] -> [c, n, ...]; tokens added at the end have weight 0."""
        x = pad_to_multiple(x.reshape(num_tokens, *x.shape[2:]), 0, num_chunks * size)
        return x.reshape(num_chunks, size, *x.shape[1:])

    def body(carry, chunk):
        hidden_ne, chunk_tokens = chunk
        values, gradients = _chunk_loss(
            settings,
            axes,
            kernel,
            bias_v,
            hidden_ne,
            chunk_tokens,
            with_gradients=with_gradients,
        )
        # Values and weight gradients add up over chunks; hidden gradients are stacked.
        summands = (values, gradients and (gradients.kernel, gradients.bias))
        return jax.tree.map(jnp.add, carry, summands), gradients and gradients.hidden

    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    sums = zeros(() if tokens.tasks is None else settings.num_tasks)
    values = (zeros(()), LossSums(*[sums] * 4))
    weight_gradients = (zeros(kernel.shape), None if bias_v is None else zeros(bias_v.shape))
    carry, hidden_gradients_cne = jax.lax.scan(
        body,
        (values, weight_gradients if with_gradients else None),
        jax.tree.map(split, (hidden_ble, tokens)),
    )
    values, weight_gradients = carry
    if weight_gradients is None:
        return values, None
    assert hidden_gradients_cne is not None
    # [c, n, e] -> [c * n, e] -> without padding [b * l, e] -> [b, l, e]
    gradient_ble = hidden_gradients_cne.reshape(-1, hidden_ble.shape[-1])[:num_tokens]
    gradient_ble = gradient_ble.reshape(hidden_ble.shape)
    # Each device has the contribution of its part of the vocabulary.
    return values, _Gradients(jax.lax.psum(gradient_ble, axes.vocab), *weight_gradients)


def _chunk_loss(
    settings: _Settings,
    axes: _MeshAxes,
    kernel,
    bias_v,
    hidden_ne,
    tokens: _Tokens,
    *,
    with_gradients: bool,
):
    """Compute the loss of one chunk of tokens over the whole vocabulary.

    This device holds the part v of the vocabulary; statistics of the logits are reduced over the
    devices that hold the others.
    """
    targets_n, weights_n, normalized_weights_n, tasks_n = tokens
    output, kernel_letters = settings.output, "ve" if settings.output.vocab_first else "ev"
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    # Logits of this part of the vocabulary, float32 [n, v].
    logits_nv = product(f"ne,{kernel_letters}->nv", hidden_ne, kernel)
    logits_nv = logits_nv if output.scale == 1.0 else logits_nv * output.scale
    logits_nv = logits_nv if bias_v is None else logits_nv + bias_v

    # Index of each target within this part; outside [0, local_vocab) another device has it.
    local_vocab = logits_nv.shape[1]
    vocab_size = local_vocab * jax.lax.psum(1, axes.vocab)
    index_n = targets_n - local_vocab * jax.lax.axis_index(axes.vocab)

    # Softmax statistics over the whole vocabulary, [n] each; the maximum keeps exp from overflow.
    max_n = jax.lax.pmax(jnp.max(logits_nv, axis=1), axes.vocab)
    exp_nv = jnp.exp(logits_nv - max_n[:, None])
    clipped_n1 = jnp.clip(index_n, 0, local_vocab - 1)[:, None]
    picked_n = jnp.take_along_axis(logits_nv, clipped_n1, axis=1)[:, 0]
    target_n = jnp.where((index_n >= 0) & (index_n < local_vocab), picked_n, 0.0)
    z_n, target_n, sum_n = jax.lax.psum(
        (jnp.sum(exp_nv, axis=1), target_n, jnp.sum(logits_nv, axis=1)), axes.vocab
    )
    log_z_n = max_n + jnp.log(z_n)

    stats = LogitStats(target_n, log_z_n, max_n, sum_n)
    losses = token_losses(stats, settings.config, vocab_size)
    sums = sum_losses(losses, weights_n, settings.num_tasks, tasks_n)
    values = (jnp.sum(losses.loss * normalized_weights_n), sums)
    if not with_gradients:
        return values, None

    # d loss / d logits = softmax * (1 + 2 * z_loss * log Z) - target distribution, weighted. The
    # first factor of the softmax, exp_nv / z_n, is folded into a number per token.
    on, off = smoothed_targets(settings.config, vocab_size)
    softmax_scale_n = normalized_weights_n * (1.0 + 2.0 * settings.config.z_loss * log_z_n) / z_n
    target_nv = jnp.where(jnp.arange(local_vocab) == index_n[:, None], on, off)
    dlogits_nv = exp_nv * softmax_scale_n[:, None] - target_nv * normalized_weights_n[:, None]
    dbias_v = None if bias_v is None else jnp.sum(dlogits_nv, axis=0)
    dlogits_nv = (dlogits_nv * output.scale).astype(hidden_ne.dtype)
    return values, _Gradients(
        hidden=product(f"nv,{kernel_letters}->ne", dlogits_nv, kernel).astype(hidden_ne.dtype),
        kernel=product(f"ne,nv->{kernel_letters}", hidden_ne, dlogits_nv),
        bias=dbias_v,
    )


def _sum_and_scatter(axes: tuple[str, ...], x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Sum over mesh axes; an axis that `spec` splits is reduce-scattered along its dimension."""
    for axis in axes:
        dimensions = [i for i, entry in enumerate(spec) if entry == axis]
        if dimensions:
            x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimensions[0], tiled=True)
        else:
            x = jax.lax.psum(x, axis)
    return x
