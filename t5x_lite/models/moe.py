"""The sparse feed-forward of Switch Transformers: route, send, compute, bring back.

Tokens are taken in groups. Within a group each token goes to the expert its router likes best, in
the order of the text, until the expert is full; tokens beyond that skip the layer (the residual
carries them). With experts sharded over the mesh's expert axis, XLA turns the two einsums that move
tokens between groups and experts into all-to-alls.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.models.layers import ACTIVATION_FUNCTIONS, drop, split_key, weight
from t5x_lite.partitioning import batch_parts, shard


class RouterLosses(NamedTuple):
    """What keeps routers healthy, weighted and ready to be added to the loss per token."""

    load_balance: jax.Array
    z_loss: jax.Array


class Routing(NamedTuple):
    """Where tokens go, one-hot by group, token, expert and place, and with what weight."""

    dispatch_gtxc: jax.Array
    combine_gtxc: jax.Array
    losses: RouterLosses


class SwitchMLP(nnx.Module):
    """Feed-forward of which each token passes one of several copies (Switch; top-1 routing).

    The router has standard deviation 0.02 and works in float32; experts start with a tenth of the
    dense layers' variance (Switch paper, 2.4).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        assert config.moe is not None
        self.config, self.moe = config, config.moe
        experts, emb_dim, mlp_dim = config.moe.num_experts, config.emb_dim, config.mlp_dim
        # The expert axis counts as a batch of matrices: fan-in is that of one expert.
        init = jax.nn.initializers.variance_scaling(
            0.1, "fan_in", "truncated_normal", batch_axis=(0,)
        )
        router_init = jax.nn.initializers.normal(0.02)
        self.router = weight(router_init, [emb_dim, experts], ("embed", "experts_whole"), rngs)
        for i in range(len(config.mlp_activations)):
            axes = ("expert", "embed", "mlp")
            setattr(self, f"wi_{i}", weight(init, [experts, emb_dim, mlp_dim], axes, rngs))
        self.wo = weight(init, [experts, mlp_dim, emb_dim], ("expert", "mlp", "embed"), rngs)

    def __call__(
        self, x_ble: jax.Array, real_bl: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, RouterLosses]:
        """Return the layer's output and the router's losses; padding is routed nowhere."""
        jitter_key, dropout_key = split_key(key, 2)
        tokens = x_ble.shape[0] * x_ble.shape[1]
        groups, _, _ = expert_places(self.moe, tokens, training=key is not None)
        x_gte = shard(x_ble.reshape(groups, -1, x_ble.shape[-1]), "batch", None, None)
        real_gt = real_bl.reshape(groups, -1)
        routing = self._route(x_gte, real_gt, training=key is not None, key=jitter_key)
        x_xgce = jnp.einsum("gte,gtxc->xgce", x_gte, routing.dispatch_gtxc.astype(x_gte.dtype))
        x_xgce = shard(x_xgce, "expert", "expert_groups", None, None)
        y_xgce = shard(self._experts(x_xgce, dropout_key), "expert", "expert_groups", None, None)
        y_gte = jnp.einsum("xgce,gtxc->gte", y_xgce, routing.combine_gtxc.astype(x_gte.dtype))
        y_ble = shard(y_gte, "batch", None, None).reshape(x_ble.shape)
        return shard(y_ble, "batch", "length", None), routing.losses

    def _experts(self, x_xgce: jax.Array, key: jax.Array | None) -> jax.Array:
        branches = [
            ACTIVATION_FUNCTIONS[name](
                jnp.einsum(
                    "xgce,xem->xgcm", x_xgce, getattr(self, f"wi_{i}")[...].astype(x_xgce.dtype)
                )
            )
            for i, name in enumerate(self.config.mlp_activations)
        ]
        h_xgcm = functools.reduce(operator.mul, branches)
        rate = self.moe.expert_dropout_rate
        rate = self.config.mlp_dropout_rate if rate is None else rate
        h_xgcm = drop(h_xgcm, self.config, key, rate)
        return jnp.einsum("xgcm,xme->xgce", h_xgcm, self.wo[...].astype(x_xgce.dtype))

    def _route(self, x_gte, real_gt, *, training: bool, key) -> Routing:
        moe, experts = self.moe, self.moe.num_experts
        x_gte = x_gte.astype(jnp.float32)
        if key is not None and moe.jitter:
            x_gte *= jax.random.uniform(
                key, x_gte.shape, minval=1.0 - moe.jitter, maxval=1.0 + moe.jitter
            )
        logits_gtx = jnp.einsum("gte,ex->gtx", x_gte, self.router[...])
        probabilities_gtx = jax.nn.softmax(logits_gtx, axis=-1)
        real_gt1 = real_gt[..., None].astype(jnp.float32)
        chosen_gtx = jax.nn.one_hot(jnp.argmax(probabilities_gtx, axis=-1), experts) * real_gt1
        capacity = expert_places(moe, real_gt.size, training=training)[2]
        place_gtx = (jnp.cumsum(chosen_gtx, axis=1) * chosen_gtx - 1.0).astype(jnp.int32)
        dispatch_gtxc = jax.nn.one_hot(place_gtx, capacity)  # no place, or none left: all zeros
        gate_gt = jnp.sum(probabilities_gtx * chosen_gtx, axis=-1)
        return Routing(
            dispatch_gtxc,
            dispatch_gtxc * gate_gt[..., None, None],
            self._losses(logits_gtx, probabilities_gtx, chosen_gtx, real_gt1),
        )

    def _losses(self, logits_gtx, probabilities_gtx, chosen_gtx, real_gt1) -> RouterLosses:
        count_g1 = jnp.maximum(jnp.sum(real_gt1, axis=1), 1.0)
        share_gx = jnp.sum(chosen_gtx, axis=1) / count_g1
        mean_gx = jnp.sum(probabilities_gtx * real_gt1, axis=1) / count_g1
        balance = self.moe.num_experts * jnp.mean(jnp.sum(share_gx * mean_gx, axis=-1))
        squares_gt1 = jnp.square(jax.nn.logsumexp(logits_gtx, axis=-1, keepdims=True))
        z_loss = jnp.sum(squares_gt1 * real_gt1) / jnp.maximum(jnp.sum(real_gt1), 1.0)
        return RouterLosses(self.moe.load_balance_loss * balance, self.moe.router_z_loss * z_loss)


def expert_places(moe: MixtureOfExperts, tokens: int, *, training: bool) -> tuple[int, int, int]:
    """Groups of a batch of so many tokens, tokens of a group, and places of an expert in it.

    A group is as large as the largest divisor of `tokens` up to `moe.group_size`. If such groups
    cannot be shared out evenly among the parts of the current mesh that hold the tokens, it is the
    largest that divides one part: otherwise every device would compute every group. Only then does
    the mesh decide which tokens compete for an expert's places (as in Mesh TensorFlow).
    """
    parts = batch_parts(jax.sharding.get_abstract_mesh())
    size = _largest_divisor(tokens, moe.group_size)
    if tokens % parts == 0 and tokens // size % parts:
        size = _largest_divisor(tokens // parts, moe.group_size)
    factor = moe.train_capacity_factor if training else moe.eval_capacity_factor
    capacity = min(max(round(factor * size / moe.num_experts), moe.min_capacity), size)
    return tokens // size, size, capacity


def _largest_divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
