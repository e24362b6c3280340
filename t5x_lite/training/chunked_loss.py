"""The loss from hidden states, and its gradient with it, some tokens at a time.

The logits of a batch are its largest array by far: 250,000 numbers a token with mT5's vocabulary.
Here they exist for one chunk of tokens only, forward and backward.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.partitioning import mesh_axes, partition_spec
from t5x_lite.training.losses import LossSums, Scores, TokenLoss, smooth, summed, token_losses


class OutputForm(NamedTuple):
    """How hidden states become logits: scale * (hidden @ kernel) + bias.

    vocab_first: the kernel is [vocab, embed], as a tied embedding is, instead of [embed, vocab].
    """

    vocab_first: bool = False
    scale: float = 1.0


def chunked_cross_entropy(
    hidden_ble: jax.Array,
    kernel: jax.Array,
    bias_v: jax.Array | None,
    targets_bl: jax.Array,
    weights_bl: jax.Array,
    shares_bl: jax.Array,
    tasks_bl: jax.Array | None = None,
    *,
    form: OutputForm,
    wanted: TokenLoss,
    chunk: int,
    num_tasks: int = 0,
) -> tuple[jax.Array, LossSums]:
    """The sum over tokens of share * loss, and sums by weight, from `chunk` tokens at a time.

    The logits of at most `chunk` tokens a device exist at once, in float32. When the first result
    is differentiated, the gradients of hidden states, kernel and bias are made in the same pass as
    the loss: three matrix products in all, as many as with whole logits. Products take the type of
    `hidden_ble` and add up in float32.

    Only the first result has a gradient, and only with respect to hidden states, kernel and bias.
    Under a mesh every device works on its own tokens and its own part of the vocabulary; devices
    exchange a few numbers per token, and each gradient once.
    """
    plan = _Plan(form, wanted, chunk, num_tasks)
    tokens = _Tokens(targets_bl, weights_bl, shares_bl, tasks_bl if num_tasks else None)
    return _objective(plan, hidden_ble, kernel, bias_v, tokens)


class _Plan(NamedTuple):
    form: OutputForm
    wanted: TokenLoss
    chunk: int
    num_tasks: int  # sums are made for each of so many tasks; 0 makes them over all tokens


class _Tokens(NamedTuple):
    """Of every token: id, weight, share of the objective, and task where they are told apart."""

    targets: Any
    weights: Any
    shares: Any
    tasks: Any


class _Gradients(NamedTuple):
    """Of hidden states, kernel and bias: arrays, or where they lie on the mesh."""

    hidden: Any
    kernel: Any
    bias: Any


class _Axes(NamedTuple):
    """Mesh axes that split tokens, and those that split the vocabulary; none outside a mesh."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _objective(plan: _Plan, hidden_ble, kernel, bias_v, tokens):
    return _whole(plan, hidden_ble, kernel, bias_v, tokens, gradients=False)[0]


def _objective_forward(plan: _Plan, hidden_ble, kernel, bias_v, tokens):
    return _whole(plan, hidden_ble, kernel, bias_v, tokens, gradients=True)


def _objective_backward(_: _Plan, gradients: _Gradients, slopes):
    slope, _ = slopes
    return *jax.tree.map(lambda g: g * slope.astype(g.dtype), gradients), None


_objective.defvjp(_objective_forward, _objective_backward)


def _whole(plan: _Plan, hidden_ble, kernel, bias_v, tokens, *, gradients: bool):
    """Run `_local` where there is no mesh, and on every device's part where there is one."""
    kernel = kernel.astype(hidden_ble.dtype)  # before it is gathered: half the bytes of float32
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _local(plan, _Axes(), hidden_ble, kernel, bias_v, tokens, gradients=gradients)
    axes = _Axes(mesh_axes("batch") + mesh_axes("length"), mesh_axes("vocab"))
    names = ("vocab", "embed") if plan.form.vocab_first else ("embed", "vocab")
    whole_embed = partition_spec(tuple(None if name == "embed" else name for name in names))
    kernel_spec, bias_spec = partition_spec(names), partition_spec(("vocab",))
    hidden_spec = partition_spec(("batch", "length", None))
    token_spec = partition_spec(("batch", "length"))

    def local(hidden_ble, kernel, bias_v, tokens):
        values, found = _local(plan, axes, hidden_ble, kernel, bias_v, tokens, gradients=gradients)
        values = jax.tree.map(lambda x: jax.lax.psum(x, axes.tokens), values)
        if found is not None:
            found = _Gradients(
                found.hidden,
                _add_over(axes.tokens, found.kernel, kernel_spec),
                None if found.bias is None else _add_over(axes.tokens, found.bias, bias_spec),
            )
        return values, found

    length, parts = hidden_ble.shape[1], math.prod(mesh.shape[a] for a in mesh_axes("length"))
    hidden_ble, tokens = jax.tree.map(lambda x: _filled(x, 1, parts), (hidden_ble, tokens))
    values, found = jax.shard_map(
        local,
        in_specs=(hidden_spec, whole_embed, bias_spec, token_spec),
        out_specs=(
            PartitionSpec(),
            _Gradients(hidden_spec, kernel_spec, bias_spec) if gradients else None,
        ),
        check_vma=False,
    )(hidden_ble, kernel, bias_v, tokens)
    return values, found and found._replace(hidden=found.hidden[:, :length])


def _local(plan: _Plan, axes: _Axes, hidden_ble, kernel, bias_v, tokens, *, gradients: bool):
    """One device's tokens, chunk by chunk: (objective, sums), and gradients if they are wanted."""
    rows = hidden_ble.shape[0] * hidden_ble.shape[1]
    chunks = -(-rows // plan.chunk)
    size = -(-rows // chunks)

    def split(x: jax.Array) -> jax.Array:
        x = _filled(x.reshape(rows, *x.shape[2:]), 0, chunks * size)  # padding has weight 0
        return x.reshape(chunks, size, *x.shape[1:])

    def body(carry, chunk):
        hidden_ne, tokens = chunk
        values, found = _chunk(plan, axes, kernel, bias_v, hidden_ne, tokens, gradients=gradients)
        total = (values, found and (found.kernel, found.bias))
        return jax.tree.map(jnp.add, carry, total), found and found.hidden

    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    sums = zeros(() if tokens.tasks is None else plan.num_tasks)
    values = (zeros(()), LossSums(*[sums] * 4))
    of_weights = (zeros(kernel.shape), None if bias_v is None else zeros(bias_v.shape))
    carry, hidden_cse = jax.lax.scan(
        body,
        (values, of_weights if gradients else None),
        jax.tree.map(split, (hidden_ble, tokens)),
    )
    values, of_weights = carry
    if of_weights is None:
        return values, None
    assert hidden_cse is not None
    hidden_ble = hidden_cse.reshape(-1, hidden_ble.shape[-1])[:rows].reshape(hidden_ble.shape)
    return values, _Gradients(jax.lax.psum(hidden_ble, axes.vocab), *of_weights)


def _chunk(plan: _Plan, axes: _Axes, kernel, bias_v, hidden_ne, tokens: _Tokens, *, gradients):
    """Loss of some tokens over all of the vocabulary, of which this device may hold a part."""
    targets_n, weights_n, shares_n, tasks_n = tokens
    form, letters = plan.form, "ve" if plan.form.vocab_first else "ev"
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits_nv = product(f"ne,{letters}->nv", hidden_ne, kernel)
    logits_nv = logits_nv if form.scale == 1.0 else logits_nv * form.scale
    logits_nv = logits_nv if bias_v is None else logits_nv + bias_v
    here = logits_nv.shape[1]
    vocab_size = here * jax.lax.psum(1, axes.vocab)
    place_n = targets_n - here * jax.lax.axis_index(axes.vocab)
    highest_n = jax.lax.pmax(jnp.max(logits_nv, axis=1), axes.vocab)
    exponentials_nv = jnp.exp(logits_nv - highest_n[:, None])
    picked_n = jnp.take_along_axis(logits_nv, jnp.clip(place_n, 0, here - 1)[:, None], axis=1)[:, 0]
    true_n = jnp.where((place_n >= 0) & (place_n < here), picked_n, 0.0)
    z_n, true_n, total_n = jax.lax.psum(
        (jnp.sum(exponentials_nv, axis=1), true_n, jnp.sum(logits_nv, axis=1)), axes.vocab
    )
    log_z_n = highest_n + jnp.log(z_n)
    losses = token_losses(Scores(true_n, log_z_n, highest_n, total_n), plan.wanted, vocab_size)
    sums = summed(losses, weights_n, plan.num_tasks, tasks_n)
    values = (jnp.sum(losses.loss * shares_n), sums)
    if not gradients:
        return values, None
    on, off = smooth(plan.wanted, vocab_size)
    softmax_scale_n = shares_n * (1.0 + 2.0 * plan.wanted.z_loss * log_z_n) / z_n
    wanted_nv = jnp.where(jnp.arange(here) == place_n[:, None], on, off)
    slopes_nv = exponentials_nv * softmax_scale_n[:, None] - wanted_nv * shares_n[:, None]
    bias_slopes_v = None if bias_v is None else jnp.sum(slopes_nv, axis=0)
    slopes_nv = (slopes_nv * form.scale).astype(hidden_ne.dtype)
    return values, _Gradients(
        product(f"nv,{letters}->ne", slopes_nv, kernel).astype(hidden_ne.dtype),
        product(f"ne,nv->{letters}", hidden_ne, slopes_nv),
        bias_slopes_v,
    )


def _add_over(axes: tuple[str, ...], x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The sum over mesh axes, left in the pieces that `spec` asks for."""
    for axis in axes:
        places = [i for i, entry in enumerate(spec) if entry == axis]
        if places:
            x = jax.lax.psum_scatter(x, axis, scatter_dimension=places[0], tiled=True)
        else:
            x = jax.lax.psum(x, axis)
    return x


def _filled(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` with zeros behind it along an axis, up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
