"""Mixing rates: how often each task of a mixture is drawn."""

from collections.abc import Mapping

from t5x_lite.errors import ConfigError


def examples_proportional_rates(
    num_examples: Mapping[str, int], *, limit: int, temperature: float = 1.0
) -> dict[str, float]:
    """Return T5's rate of each task: min(examples, limit) ** (1 / temperature).

    The limit keeps a huge task from drowning the others; a temperature above 1 draws the rates
    together. Rates need no common scale; they are divided by their sum where they are used:

        {"text": 1_000_000, "name": 900}, limit 10_000, temperature 2   ->   100 and 30

    Source: Raffel et al. 2020 (T5), section 3.5.2.
    """
    if limit < 1:
        raise ConfigError(
            f"the examples limit is {limit}: it must be at least 1", "EmbeddedCorpus.limit"
        )
    if temperature <= 0:
        raise ConfigError(
            f"the mixing temperature is {temperature}: it must be positive",
            "EmbeddedCorpus.temperature",
        )
    return {name: min(count, limit) ** (1 / temperature) for name, count in num_examples.items()}
