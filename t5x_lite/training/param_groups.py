"""Groups of weights by regular expressions: frozen, without decay, with other learning rates."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from t5x_lite.errors import ConfigError
from t5x_lite.partitioning import LogicalAxes
from t5x_lite.training.per_parameter import (
    Optimizer,
    Tree,
    WeightOptimizer,
    WeightRule,
    bind_rules,
    described,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped:
    """An optimizer that treats some weights differently.

    Patterns are regular expressions, searched (`re.search`) in paths such as
    "encoder/layers/mlp/wo/kernel". A pattern that matches no weight is an error.

    Args:
        optimizer: The optimizer of all weights that are not frozen.
        frozen: Weights that never change. They have no gradient and no optimizer state, and a run
            that started from another run's weights (`trainer.resume.InitFrom`) does not save them
            again.
        without_decay: Weights without weight decay.
        without_parameter_scale: Weights whose learning rate is not relative to their size (T5X's
            multiply_by_parameter_scale map).
        rate_multipliers: Pattern -> factor of the learning rate. The first pattern that matches is
            used.
    """

    optimizer: WeightOptimizer
    frozen: Sequence[str] = ()
    without_decay: Sequence[str] = ()
    without_parameter_scale: Sequence[str] = ()
    rate_multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in ("frozen", "without_decay", "without_parameter_scale", "rate_multipliers"):
            patterns = getattr(self, field)
            if isinstance(patterns, str):
                raise ConfigError(
                    f"{field} is the text {patterns!r}; expected a tuple of patterns",
                    f"Grouped.{field}",
                )
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(
                        f"{field} has {pattern!r}, which is not a regular expression: {error}",
                        f"Grouped.{field}",
                    ) from error

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind to weights of these shapes and logical axes.

        Raises:
            ConfigError: If a pattern matches no weight, or all weights are frozen.
        """
        paths = [path for path, _, _ in described(shapes, axes)]
        self._check_patterns(paths)
        if all(_matches(self.frozen, path) for path in paths):
            raise ConfigError(
                f"frozen = {tuple(self.frozen)} leaves no weight to train", "Grouped.frozen"
            )
        return bind_rules(self._rule, shapes, axes)

    def _rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule | None:
        if _matches(self.frozen, path):
            return None
        optimizer = self.optimizer.without(
            decay=_matches(self.without_decay, path),
            parameter_scale=_matches(self.without_parameter_scale, path),
        )
        rule = optimizer.rule(path, shape, axes)
        factor = next((f for p, f in self.rate_multipliers.items() if re.search(p, path)), 1.0)
        if factor == 1.0:
            return rule
        return rule._replace(
            update=lambda grad, state, param, step, rate: rule.update(
                grad, state, param, step, factor * rate
            )
        )

    def _check_patterns(self, paths: Sequence[str]) -> None:
        for field in ("frozen", "without_decay", "without_parameter_scale", "rate_multipliers"):
            for pattern in getattr(self, field):
                if not any(re.search(pattern, path) for path in paths):
                    raise ConfigError(
                        f"{field} has {pattern!r}, which matches no weight's path; the paths "
                        f"are {', '.join(sorted(paths))}",
                        f"Grouped.{field}",
                    )


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
