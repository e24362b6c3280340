import pytest

from t5x_lite.data.tasks import mixing_rates
from t5x_lite.data.tasks.mixing_rates import examples_proportional_rates
from t5x_lite.errors import ConfigError

COUNTS = {"text": 1_000_000, "summarize": 10_000, "name": 900}


def test_rates_are_proportional_to_examples_up_to_the_limit():
    rates = examples_proportional_rates(COUNTS, limit=20_000)
    assert rates == {"text": 20_000, "summarize": 10_000, "name": 900}


def test_temperature_draws_rates_together():
    rates = examples_proportional_rates(COUNTS, limit=10_000, temperature=2)
    assert rates == pytest.approx({"text": 100, "summarize": 100, "name": 30})


def test_a_limit_of_one_mixes_equally():
    assert set(examples_proportional_rates(COUNTS, limit=1).values()) == {1}


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"limit": 0}, "limit"), ({"limit": 1, "temperature": 0}, "temperature")],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, name):
    with pytest.raises(ConfigError, match=name) as caught:
        examples_proportional_rates(COUNTS, **settings)
    assert caught.value.names == (f"EmbeddedCorpus.{name}", f"Study.{name}")


def test_a_language_is_drawn_by_its_size_to_a_power():
    rates = mixing_rates.language_rates({"en": 1000.0, "sw": 1.0}, alpha=0.5)
    assert rates["en"] / rates["sw"] == pytest.approx(1000**0.5)
    assert sum(rates.values()) == pytest.approx(1)
    assert mixing_rates.language_rates({"en": 8.0, "sw": 1.0})["en"] == pytest.approx(
        8**0.3 / (8**0.3 + 1)
    )


def test_unimax_is_even_but_for_languages_too_small_for_it():
    sizes = {"c": 1000.0, "a": 10.0, "b": 100.0}
    rates = mixing_rates.unimax_rates(sizes, budget=300)
    assert rates == pytest.approx({"c": 190 / 300, "a": 10 / 300, "b": 100 / 300})
    twice = mixing_rates.unimax_rates(sizes, budget=300, max_epochs=2)
    assert twice == pytest.approx({"c": 140 / 300, "a": 20 / 300, "b": 140 / 300})
    assert mixing_rates.unimax_rates(sizes, budget=9) == pytest.approx(dict.fromkeys(sizes, 1 / 3))


def test_without_enough_text_for_the_budget_unimax_follows_the_sizes():
    rates = mixing_rates.unimax_rates({"a": 10.0, "b": 30.0}, budget=1e9)
    assert rates == pytest.approx({"a": 0.25, "b": 0.75})


def test_equal_rates_are_the_limit_of_a_high_temperature():
    rates = examples_proportional_rates({"a": 10, "b": 10**6}, limit=None, temperature=1e9)
    assert rates == pytest.approx({"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("rates", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}])
def test_a_mixture_needs_rates_that_can_be_drawn_by(rates):
    with pytest.raises(ConfigError, match="the mixture 'mine' has the rates"):
        mixing_rates.Mixture("mine", rates)
