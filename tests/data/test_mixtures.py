import pytest

from t5x_lite.data.mixtures import examples_proportional_rates
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
    assert caught.value.names == (f"EmbeddedCorpus.{name}",)
