"""Mixing rates: how often each task of a mixture is drawn (limit, temperature, UniMax)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t5x_lite.data.code_identity import versioned
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    import seqio


def examples_proportional_rates(
    num_examples: Mapping[str, float], *, limit: float | None, temperature: float = 1.0
) -> dict[str, float]:
    """Return T5's mixing rate of each task: min(examples, limit) ** (1 / temperature).

        {"text": 1_000_000, "name": 900}, limit 10_000, temperature 2   ->   100 and 30

    Args:
        num_examples: The number of training examples of each task.
        limit: Caps the number of examples, so that a huge task does not dominate; None: no cap.
        temperature: Above 1, it makes the rates more equal.

    Returns:
        The rate of each task, in no particular unit: rates are divided by their sum when used.

    Raises:
        ConfigError: If the limit is below 1 or the temperature is not positive.

    Source: Raffel et al. 2020 (T5), section 3.5.2.
    """
    if limit is not None and limit < 1:
        raise ConfigError(
            f"the examples limit is {limit}: it must be at least 1",
            "EmbeddedCorpus.limit",
            "Study.limit",
        )
    if temperature <= 0:
        raise ConfigError(
            f"the mixing temperature is {temperature}: it must be positive",
            "EmbeddedCorpus.temperature",
            "Study.temperature",
        )
    cap = float("inf") if limit is None else limit
    return {name: min(count, cap) ** (1 / temperature) for name, count in num_examples.items()}


@versioned("rates_by_examples", 1)
@dataclass(frozen=True)
class ExamplesProportionalRate:
    """A rate for seqio mixtures that depends on the number of training examples of the task.

    The number is looked up when the mixture is used, not when it is registered.

        seqio.MixtureRegistry.add("mix", ["a", "b"], default_rate=ExamplesProportionalRate(2**19))

    Attributes:
        limit: As in `examples_proportional_rates`.
        temperature: As in `examples_proportional_rates`.
    """

    limit: float | None = None
    temperature: float = 1.0

    def __post_init__(self):
        """Raise ConfigError for an invalid limit or temperature."""
        examples_proportional_rates({}, limit=self.limit, temperature=self.temperature)

    def __call__(self, task: "seqio.Task") -> float:
        """Return the rate of a task, 0 for one without a training split."""
        if "train" not in task.splits:
            return 0.0
        try:
            count = task.num_input_examples("train")
        except (AssertionError, OSError, ValueError) as error:
            raise ConfigError(
                f"task {task.name!r}: its examples cannot be counted: {str(error).splitlines()[0]}",
                "MIXTURE_OR_TASK_NAME",
            ) from error
        if count is None:
            raise ConfigError(
                f"task {task.name!r} does not know how many examples it has: give it a rate",
                "MIXTURE_OR_TASK_NAME",
            )
        rates = examples_proportional_rates(
            {task.name: count}, limit=self.limit, temperature=self.temperature
        )
        return rates[task.name]


@versioned("mixture", 1)
@dataclass(frozen=True)
class Mixture:
    """A task provider that registers a mixture of tasks or mixtures of other task providers.

    Args:
        name: Name of the mixture.
        rates: The rate of each task or mixture by name, in any unit. A mixture counts as one task;
            its own rates divide its part.

    Raises:
        ConfigError: If a rate is negative or infinite, or all are 0.
    """

    name: str
    rates: Mapping[str, float]

    def __post_init__(self):
        bad = [name for name, rate in self.rates.items() if not 0 <= rate < float("inf")]
        if bad or not any(self.rates.values()):
            raise ConfigError(
                f"the mixture {self.name!r} has the rates {dict(self.rates)}: they must be 0 or "
                "more, and one above 0",
                "Mixture.rates",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the mixture."""
        return (self.name,)

    def register(self, data_dir: str) -> None:
        """Register the mixture; raises ConfigError where a part of it is not registered."""
        import seqio

        known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()} - {self.name}
        if missing := [name for name in self.rates if name not in known]:
            raise ConfigError(
                f"the mixture {self.name!r} has the part {missing[0]!r}, which no declaration "
                "before it registers",
                "Mixture.rates",
                "Data.task_providers",
            )
        seqio.MixtureRegistry.remove(self.name)
        seqio.MixtureRegistry.add(self.name, list(self.rates.items()))


def language_rates(sizes: Mapping[str, float], *, alpha: float = 0.3) -> dict[str, float]:
    """Return the probability of each language, size ** alpha over the sum: mT5's sampling.

    Args:
        sizes: The amount of text of each language, in any unit.
        alpha: Below 1, it boosts small languages. mT5 uses 0.3.

    Source: Xue et al. 2021 (mT5), section 3.1.
    """
    powers = {language: size**alpha for language, size in sizes.items()}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


def unimax_rates(
    sizes: Mapping[str, float], *, budget: float, max_epochs: float = 1.0
) -> dict[str, float]:
    """Return the probability of each language by UniMax: uniform, with a cap on repetition.

    From the smallest language up, each gets an equal part of the remaining budget, but at most
    `max_epochs` of its text:

        sizes {"a": 10, "b": 100, "c": 1000}, budget 300   ->   10, 100 and 190 of 300

    Args:
        sizes: The amount of text of each language, such as characters.
        budget: The amount of text of the whole run, in the same unit.
        max_epochs: How often the text of a language may be repeated.

    Returns:
        Probabilities, which sum to 1 even if there is too little text for the budget.

    Source: Chung et al. 2023 (UniMax), algorithm 1.
    """
    allocated: dict[str, float] = {}
    remaining = budget
    for rank, language in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        equal_part = remaining / (len(sizes) - rank)
        allocated[language] = min(equal_part, max_epochs * sizes[language])
        remaining -= allocated[language]
    total = sum(allocated.values())
    return {language: allocated[language] / total for language in sizes}
