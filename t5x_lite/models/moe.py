"""Sparse feed-forward of the Switch Transformer: route, dispatch, compute, combine.

The tokens of a batch are divided into groups. Within a group each token goes to the expert with the
highest router probability, in the order of the sequence, until the expert's capacity is used.
Tokens beyond that are dropped: the layer adds nothing to them, and the residual connection carries
them on. With experts sharded over the mesh's expert axis, XLA lowers the einsums that dispatch and
combine tokens to all-to-alls.

Array names: b batch, l length, e embed, m mlp, g groups, t tokens of a group, x experts, c slots of
an expert's capacity.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.models.layers import ACTIVATION_FUNCTIONS, apply_dropout, make_param, split_key
from t5x_lite.partitioning import num_batch_shards, shard


class RouterLosses(NamedTuple):
    """Auxiliary losses, multiplied by their coefficients, to be added to the loss per token.

    Attributes:
        load_balance: Keeps the load of the experts even.
        z_loss: Keeps router logits small.
    """

    load_balance: jax.Array
    z_loss: jax.Array


class Routing(NamedTuple):
    """Assignment of tokens to slots of experts.

    Attributes:
        dispatch_gtxc: One-hot over (expert, slot) for each token; all zeros if it is dropped.
        combine_gtxc: The same, multiplied by the router probability of the expert.
        losses: Auxiliary losses.
    """

    dispatch_gtxc: jax.Array
    combine_gtxc: jax.Array
    losses: RouterLosses


class SwitchMLP(nnx.Module):
    """Mixture of feed-forward experts with top-1 routing (Fedus et al. 2021, section 2).

    The router is initialized with standard deviation 0.02 and computed in float32. Experts are
    initialized with a tenth of the variance of dense layers, for stability (section 2.4).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        assert config.moe is not None
        self.config, self.moe = config, config.moe
        experts, emb_dim, mlp_dim = config.moe.num_experts, config.emb_dim, config.mlp_dim
        # With the expert axis as a batch axis, the fan-in is that of one expert.
        init = jax.nn.initializers.variance_scaling(
            0.1, "fan_in", "truncated_normal", batch_axis=(0,)
        )
        router_init = jax.nn.initializers.normal(0.02)
        self.router = make_param(router_init, [emb_dim, experts], ("embed", "experts_whole"), rngs)
        for i in range(len(config.mlp_activations)):
            axes = ("expert", "embed", "mlp")
            setattr(self, f"wi_{i}", make_param(init, [experts, emb_dim, mlp_dim], axes, rngs))
        self.wo = make_param(init, [experts, mlp_dim, emb_dim], ("expert", "mlp", "embed"), rngs)

    def __call__(
        self, x_ble: jax.Array, real_bl: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, RouterLosses]:
        """Apply the layer.

        Args:
            x_ble: Activations [batch, length, embed].
            real_bl: bool, False for padding, which is not routed.
            key: PRNG key of jitter and dropout; None in evaluation, which uses the evaluation
                capacity factor.

        Returns:
            Activations [batch, length, embed] and the router's losses.
        """
        jitter_key, dropout_key = split_key(key, 2)
        tokens = x_ble.shape[0] * x_ble.shape[1]
        groups = expert_capacity(self.moe, tokens, training=key is not None).num_groups
        # [b, l, e] -> [g, t, e]
        x_gte = shard(x_ble.reshape(groups, -1, x_ble.shape[-1]), "batch", None, None)
        real_gt = real_bl.reshape(groups, -1)
        routing = self._route(x_gte, real_gt, training=key is not None, key=jitter_key)
        # Dispatch: from sharded by groups to sharded by experts.
        x_xgce = jnp.einsum("gte,gtxc->xgce", x_gte, routing.dispatch_gtxc.astype(x_gte.dtype))
        x_xgce = shard(x_xgce, "expert", "expert_groups", None, None)
        y_xgce = shard(self._experts(x_xgce, dropout_key), "expert", "expert_groups", None, None)
        # Combine: back to sharded by groups, weighted by router probabilities.
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
        h_xgcm = apply_dropout(h_xgcm, self.config, key, rate)
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
        capacity = expert_capacity(moe, real_gt.size, training=training).capacity
        # The k-th token of a group that chooses an expert gets its slot k; -1 for other experts.
        slot_gtx = (jnp.cumsum(chosen_gtx, axis=1) * chosen_gtx - 1.0).astype(jnp.int32)
        # one_hot gives all zeros for indices outside [0, capacity): dropped, or another expert.
        dispatch_gtxc = jax.nn.one_hot(slot_gtx, capacity)
        gate_gt = jnp.sum(probabilities_gtx * chosen_gtx, axis=-1)
        return Routing(
            dispatch_gtxc,
            dispatch_gtxc * gate_gt[..., None, None],
            self._losses(logits_gtx, probabilities_gtx, chosen_gtx, real_gt1),
        )

    def _losses(self, logits_gtx, probabilities_gtx, chosen_gtx, real_gt1) -> RouterLosses:
        # Load balance (Switch Transformer, equations 4 to 6): experts * sum_x(fraction of tokens
        # that choose x * mean probability of x), 1 if both are even.
        count_g1 = jnp.maximum(jnp.sum(real_gt1, axis=1), 1.0)
        fraction_gx = jnp.sum(chosen_gtx, axis=1) / count_g1
        mean_gx = jnp.sum(probabilities_gtx * real_gt1, axis=1) / count_g1
        balance = self.moe.num_experts * jnp.mean(jnp.sum(fraction_gx * mean_gx, axis=-1))
        # Router z-loss (ST-MoE, equation 5): mean of (log Z)².
        squares_gt1 = jnp.square(jax.nn.logsumexp(logits_gtx, axis=-1, keepdims=True))
        z_loss = jnp.sum(squares_gt1 * real_gt1) / jnp.maximum(jnp.sum(real_gt1), 1.0)
        return RouterLosses(self.moe.load_balance_loss * balance, self.moe.router_z_loss * z_loss)


class ExpertCapacity(NamedTuple):
    """How the tokens of a batch are grouped.

    Attributes:
        num_groups: Number of groups.
        group_size: Tokens of a group.
        capacity: Tokens of a group that an expert can process.
    """

    num_groups: int
    group_size: int
    capacity: int


def expert_capacity(moe: MixtureOfExperts, tokens: int, *, training: bool) -> ExpertCapacity:
    """Divide a batch into groups and compute the capacity of experts.

    The group size is the largest divisor of `tokens` up to `moe.group_size`. If the resulting
    groups cannot be distributed evenly over the current mesh, it is the largest divisor of a
    device's tokens instead: otherwise every device would compute every group. Only in that case
    does the mesh influence which tokens compete for capacity (as in Mesh TensorFlow).

    Args:
        moe: Group size and capacity factors.
        tokens: Positions of the batch, padding included.
        training: Which of the capacity factors applies.
    """
    shards = num_batch_shards(jax.sharding.get_abstract_mesh())
    size = _largest_divisor(tokens, moe.group_size)
    if tokens % shards == 0 and tokens // size % shards:
        size = _largest_divisor(tokens // shards, moe.group_size)
    factor = moe.train_capacity_factor if training else moe.eval_capacity_factor
    capacity = min(max(round(factor * size / moe.num_experts), moe.min_capacity), size)
    return ExpertCapacity(tokens // size, size, capacity)


def _largest_divisor(number: int, bound: int) -> int:
    return next(size for size in range(min(number, bound), 0, -1) if number % size == 0)
