"""What a line of training says about speed, and where the start's time went."""

import time

import pytest

from t5x_lite.console import training_line
from t5x_lite.models.flops import TokenFlops
from t5x_lite.trainer.goodput import StartupTimer
from t5x_lite.trainer.throughput import StepWork

# 8 devices of 100 TFLOP/s; a full batch holds 300 input and 100 target tokens.
WORK = StepWork(per_step=1.5e15, per_token=TokenFlops(4e12, 3e12), devices=8, peak=1e14)


def test_mfu_is_model_flops_over_what_all_devices_could_have_done():
    rates = WORK.rates(seconds_per_step=5.0, inputs=300, targets=100)
    assert rates["tflops_per_device"] == pytest.approx(1.5e15 / 5 / 8 / 1e12)
    assert rates["mfu"] == pytest.approx(1.5e15 / (5 * 8 * 1e14))
    assert rates["effective_mfu"] == pytest.approx(rates["mfu"])  # no padding


def test_padding_lowers_the_effective_mfu_alone():
    full, padded = (WORK.rates(5.0, inputs=n, targets=100) for n in (300, 150))
    assert padded["mfu"] == full["mfu"]
    lost = 150 * 4e12 / (5 * 8 * 1e14)
    assert padded["effective_mfu"] == pytest.approx(full["effective_mfu"] - lost)


def test_where_a_peak_is_not_known_no_mfu_is_claimed():
    rates = WORK._replace(peak=None).rates(5.0, inputs=300, targets=100)
    assert set(rates) == {"tflops_per_device"}
    numbers = dict.fromkeys(("loss", "accuracy", "learning_rate", "tokens_per_second"), 0.5)
    numbers |= dict.fromkeys(("padding", "data_wait"), 0.0)
    assert "MFU" not in training_line(1, 2, numbers, 3.0)
    assert "| MFU 37.5% |" in training_line(1, 2, {**numbers, "mfu": 0.375}, 3.0)


def test_the_laps_of_a_start_add_up_to_its_time_from_the_process_on():
    startup = StartupTimer()
    startup.lap("import")
    startup.lap("data")
    startup.lap("data")
    seconds = startup.seconds
    assert seconds["total"] == pytest.approx(seconds["import"] + seconds["data"])
    assert seconds["import"] > time.process_time() / 16  # the process is older than this test
    assert seconds["data"] < seconds["import"]
    assert startup.line().endswith(" s)")
    assert "(import " in startup.line()
