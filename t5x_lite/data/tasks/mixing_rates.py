"""Mixing rates: how often each task of a mixture is drawn."""

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
    """Return T5's rate of each task: min(examples, limit) ** (1 / temperature).

    The limit keeps a huge task from drowning the others; a temperature above 1 draws the rates
    together. Rates need no common scale; they are divided by their sum where they are used:

        {"text": 1_000_000, "name": 900}, limit 10_000, temperature 2   ->   100 and 30

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
    most = float("inf") if limit is None else limit
    return {name: min(count, most) ** (1 / temperature) for name, count in num_examples.items()}


@versioned("rates_by_examples", 1)
@dataclass(frozen=True)
class ExamplesProportionalRate:
    """A rate for seqio mixtures that follows from how many training examples a task has.

    The number is looked up when the mixture is used, not when it is registered.
    """

    limit: float | None = None
    temperature: float = 1.0

    def __post_init__(self):
        """Refuse a limit or a temperature that gives no rates."""
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
    """The declaration of a mixture of tasks or mixtures that other task_providers register.

    rates: explicit ones by name; a mixture inside counts as one task, whose own rates divide it.
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
    """Return the share of each language, size ** alpha over the sum: mT5's sampling."""
    powers = {language: size**alpha for language, size in sizes.items()}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


def unimax_rates(
    sizes: Mapping[str, float], *, budget: float, max_epochs: float = 1.0
) -> dict[str, float]:
    """Return the share of each language by UniMax: as even as it can be without many repeats.

    sizes and budget: in the same unit, such as characters. From the smallest language up, each
    takes an even share of what is left of the budget, but no more than `max_epochs` of its text:

        sizes {"a": 10, "b": 100, "c": 1000}, budget 300   ->   10, 100 and 190 of 300

    The shares sum to 1 even where there is not enough text for the budget. Source: Chung et al.
    2023 (UniMax), algorithm 1.
    """
    taken: dict[str, float] = {}
    left = budget
    for rank, language in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        share = left / (len(sizes) - rank)
        taken[language] = min(share, max_epochs * sizes[language])
        left -= taken[language]
    total = sum(taken.values())
    return {language: taken[language] / total for language in sizes}
