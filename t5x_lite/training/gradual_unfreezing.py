"""Gradual unfreezing: training begins with the top layers and adds one more layer at a time."""

import dataclasses

import jax
import jax.numpy as jnp

from t5x_lite.errors import ConfigError
from t5x_lite.training.per_parameter import Optimizer, OptimizerConfig, Tree, described
from t5x_lite.tree_paths import flatten, unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraduallyUnfrozen:
    """An optimizer that trains one more layer of each stack in every episode, from the top.

    In the first episode the last layer of the encoder and of the decoder change, in the second the
    last two, and so on. All that is outside the layers (embeddings, head, final norms, tables of
    relative positions) always changes. A layer that does not change yet keeps its optimizer state,
    and its gradients count neither in norms nor in clipping. In a mixture of experts, a block of
    layers counts as one. T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.5.1) has 12 layers and
    12 episodes of 2^18 / 12 steps.

    Args:
        optimizer: The optimizer of the weights that change.
        episode_steps: Steps of an episode.
        step_offset: Step at which the first episode begins.
    """

    optimizer: OptimizerConfig
    episode_steps: int
    step_offset: int = 0

    def __post_init__(self):
        if self.episode_steps < 1:
            raise ConfigError(
                f"episode_steps is {self.episode_steps}; expected 1 or more",
                "GraduallyUnfrozen.episode_steps",
            )

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind to weights of these shapes and logical axes."""
        inner = self.optimizer.for_weights(shapes, axes)
        depths = {
            path: shape[0] for path, shape, names in described(shapes, axes) if names[0] == "layers"
        }

        def where_trained(path: str, step: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
            owner = next((name for name in depths if f"{path}/".startswith(f"{name}/")), None)
            if owner is None:
                return new
            episode = jnp.maximum(step - self.step_offset, 0) // self.episode_steps
            trained_n = jnp.arange(depths[owner]) >= depths[owner] - 1 - episode
            # Align [layers] with the leading axis of an array of any rank.
            return jnp.where(trained_n.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        def merged(step: jax.Array, new: Tree, old: Tree) -> Tree:
            before = flatten(old)
            return unflatten(
                {p: where_trained(p, step, leaf, before[p]) for p, leaf in flatten(new).items()}
            )

        def update(grads: Tree, state: Tree, params: Tree, step: jax.Array, rate: jax.Array):
            new_params, new_state = inner.update(grads, state, params, step, rate)
            return merged(step, new_params, params), merged(step, new_state, state)

        def trained(grads: Tree, step: jax.Array) -> Tree:
            grads = inner.trained(grads, step)
            return merged(step, grads, jax.tree.map(jnp.zeros_like, grads))

        return inner._replace(update=update, trained=trained)
