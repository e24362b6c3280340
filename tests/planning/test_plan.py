"""`t5x_lite plan`, called as the command line calls it."""

import copy
import json

import pytest

from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import topology
from t5x_lite.models.config import TransformerConfig
from t5x_lite.planning.lowering import Setting
from t5x_lite.planning.plan import plan
from t5x_lite.planning.plan_schema import check_schema
from t5x_lite.planning.plan_step import plan_step
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.step import Loss, Update

MODEL = TransformerConfig(
    vocab_size=512,
    emb_dim=128,
    num_heads=2,
    head_dim=64,
    mlp_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=2,
    remat="full",
)
SCHEDULE = InverseSquareRoot(base=1.0, warmup_steps=10)
LENGTHS = {"inputs": 64, "targets": 16}


def _setting(**changes):
    setting = Setting(
        model=MODEL,
        optimizer=Adafactor(),
        learning_rate=SCHEDULE,
        loss=Loss(),
        update=Update(),
        mesh={"fsdp": -1},
        batch_size=32,
        lengths=LENGTHS,
        packed=True,
        mode="train",
        compiler_options={},
    )
    return setting._replace(**changes)


def _plan(topology_name, output, **changes):
    setting = {**_setting()._asdict(), **changes}
    plan(topology_name=topology_name, output=str(output), **setting)


def test_gpus_get_the_analytic_part_and_are_told_so(tmp_path, capsys):
    _plan("h200:8", tmp_path / "plan")
    said = " ".join(capsys.readouterr().out.split())
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    check_schema(made)
    assert made["compute"] is made["collectives"] is made["compiler"] is None
    assert "this is the analytic part alone" in said
    assert "Plan of a training step on h200:8" in said
    assert made["memory"]["total"] == sum(made["memory"]["split"].values())
    assert (tmp_path / "plan" / "plan.md").read_text().startswith("# Plan of a training step")
    assert made["batch"] == {
        "rows": 32,
        "rows_per_chip": 4.0,
        "lengths": LENGTHS,
        "tokens": 32 * (64 + 16),
    }


def test_days_and_chip_hours_follow_from_the_step(tmp_path):
    _plan("a100:8", tmp_path / "plan", training_tokens=2560e6)
    estimate = json.loads((tmp_path / "plan" / "plan.json").read_text())["estimate"]
    steps = 2560e6 / 2560
    for days, hours, seconds in zip(
        estimate["days"], estimate["chip_hours"], estimate["step_seconds"], strict=True
    ):
        assert days == pytest.approx(steps * seconds / 86_400)
        assert hours == pytest.approx(days * 24 * 8)
    assert estimate["step_seconds"][0] <= estimate["step_seconds"][1]
    assert estimate["mfu"][1] <= 1.0


def test_the_cost_is_chip_hours_of_the_steps_times_the_price(tmp_path, capsys):
    _plan("a100:8", tmp_path / "plan", training_steps=1000, price=2.5)
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    check_schema(made)
    assert made["estimate"]["training_tokens"] == 1000 * made["batch"]["tokens"]
    assert made["cost"]["price_per_chip_hour"] == 2.5
    for paid, hours in zip(made["cost"]["cost"], made["estimate"]["chip_hours"], strict=True):
        assert paid == pytest.approx(2.5 * hours)
    for hours, seconds in zip(
        made["estimate"]["chip_hours"], made["estimate"]["step_seconds"], strict=True
    ):
        assert hours == pytest.approx(1000 * seconds * 8 / 3600)
    said = capsys.readouterr().out
    assert "cost at 2.5 a chip-hour" in said
    assert "- cost: chip-hours of the estimate times the price" in said


def test_without_a_price_there_is_no_cost(tmp_path, capsys):
    _plan("a100:8", tmp_path / "plan")
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["cost"] is None
    assert "cost" not in capsys.readouterr().out


def test_an_evaluation_needs_no_optimizer(tmp_path):
    _plan("h100:8", tmp_path / "plan", mode="eval")
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert "optimizer state" not in made["memory"]["split"]
    assert made["what"] == "evaluation step"


def test_generation_is_planned_by_prefill_token_and_cache(tmp_path, capsys):
    written = Generation(max_length=32, num_beams=4)
    _plan("h200:8", tmp_path / "plan", mode="decode", generation=written, training_steps=7)
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    check_schema(made)
    found = made["decoding"]
    assert (found["texts"], found["tokens"]) == (32 * 4, 32)
    # 2 layers of 2 heads x 64, keys and values in bfloat16, a device's 16 texts and 4 inputs
    assert found["cache_bytes"] == {"own": 16 * 32 * 1024, "cross": 4 * 64 * 1024}
    assert made["memory"]["split"]["cached keys and values"] == sum(found["cache_bytes"].values())
    for n in (0, 1):
        whole = found["prefill_seconds"][n] + 32 * found["token_seconds"][n]
        assert whole >= made["estimate"]["step_seconds"][n] * (1 - 1e-9)
        rate = found["texts"] / found["token_seconds"][1 - n] / 8
        assert found["tokens_per_second_per_chip"][n] == pytest.approx(rate)
    assert made["batch"]["tokens"] == 32 * 4 * 32
    assert made["batch"]["lengths"] == {"inputs": 64, "targets": 32}
    said = " ".join(capsys.readouterr().out.split())
    assert "Generation of 32 tokens" in said
    assert "Plan of a generation on h200:8" in said


@pytest.mark.usefixtures("needs_libtpu")
def test_generation_is_compiled_and_split_at_its_loop_over_tokens(tmp_path):
    small = dict(vocab_size=256, emb_dim=128, num_heads=1, head_dim=128, mlp_dim=128)
    model = TransformerConfig(**small, num_encoder_layers=1, num_decoder_layers=1, remat="none")
    options = dict(model=model, lengths={"inputs": 128}, mesh={"data": 4}, mode="decode")
    options["generation"] = Generation(max_length=16)
    _plan("v5e:2x2", tmp_path / "plan", cache=str(tmp_path / "cache"), **options)
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    found, compute = made["decoding"], made["compute"]
    assert "its loop over tokens" in found["source"]
    whole = found["prefill_seconds"][1] + 16 * found["token_seconds"][1]
    assert whole == pytest.approx(compute["seconds"] + made["collectives"]["exposed"])
    parts = {(part["part"], part["direction"]) for part in compute["parts"]}
    assert {("encoder", "prefill"), ("decoder", "token")} <= parts
    assert compute["flops"] == pytest.approx(made["flops"]["model_per_step"] / 4, rel=0.1)
    assert made["memory"]["total"] > sum(found["cache_bytes"].values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mesh": {"fsdp": 3}}, "does not fit the 8 devices of h200:8"),
        ({"mesh": {"sideways": 8}}, "unknown mesh axis 'sideways'"),
        ({"price": 0.0}, "expected more than 0"),
        ({"mode": "sing"}, "plan.mode is 'sing'"),
        ({"search": True}, "a search needs the TPU compiler"),
    ],
)
def test_what_does_not_go_together_is_one_clear_line(changes, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        _plan("h200:8", tmp_path, **changes)
    assert said in error.value.message
    assert "\n" not in error.value.message


def test_a_model_that_cannot_fit_is_reported_as_such(tmp_path, capsys, shipped):
    _plan("a100:1", tmp_path / "plan", model=shipped("t5_1_1/xxl"), batch_size=1)
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert not made["memory"]["fits"]
    assert made["estimate"] is None


def test_the_schema_notices_what_is_missing_or_of_the_wrong_type(tmp_path):
    made = plan_step(_setting(), topology("h200:8"), 1e9, tmp_path).plan
    check_schema(made)
    for break_it in (
        lambda p: p.pop("roofline"),
        lambda p: p["memory"].update(total="much"),
        lambda p: p["topology"].update(extra=1),
        lambda p: p.update(notes=[1]),
    ):
        broken = copy.deepcopy(made)
        break_it(broken)
        with pytest.raises(ValueError, match=r"plan\b.*expected"):
            check_schema(broken)


@pytest.mark.usefixtures("needs_libtpu")
def test_a_tiny_step_is_compiled_for_a_tpu_and_found_again(tmp_path, capsys, log_lines):
    small = dict(vocab_size=256, emb_dim=128, num_heads=1, head_dim=128, mlp_dim=128)
    model = TransformerConfig(**small, num_decoder_layers=1, dtype="float32")
    options = dict(model=model, lengths={"inputs": 8, "targets": 8}, cache=str(tmp_path / "cache"))
    for number in range(2):
        _plan("v5e:2x2", tmp_path / f"plan{number}", **options)
    first, second = (
        json.loads((tmp_path / f"plan{number}" / "plan.json").read_text()) for number in range(2)
    )
    check_schema(first)
    assert not first["compiler"].pop("cached")
    assert second["compiler"].pop("cached")
    assert first == second
    assert first["memory"]["fits"]
    assert sum(first["memory"]["split"].values()) == first["memory"]["total"]
    assert first["compute"]["seconds"] > first["compute"]["instruction_roofline"] > 0
    assert {kind["axis"] for kind in first["collectives"]["kinds"]} == {"fsdp"}
    model_flops = first["flops"]["model_per_step"] / 4
    assert first["compute"]["flops"] == pytest.approx(model_flops, rel=0.05)
    parts = {part["part"] for part in first["compute"]["parts"]}
    assert {"decoder", "loss", "optimizer"} <= parts
    said = capsys.readouterr().out
    assert "compiling for v5e:2x2 ..." in log_lines
    assert "read from the cache" in said


@pytest.mark.usefixtures("needs_libtpu")
def test_a_step_that_the_compiler_finds_too_large_is_reported_with_its_largest_arrays(
    tmp_path, capsys
):
    """2.7 billion weights, all of them and their gradients on every chip of 16 GB."""
    small = dict(emb_dim=1024, num_heads=1, head_dim=128, mlp_dim=128, num_decoder_layers=1)
    model = TransformerConfig(vocab_size=1024 * 1280, **small)
    options = dict(mesh={"data": 4}, batch_size=4, lengths={"inputs": 8, "targets": 8})
    _plan("v5e:2x2", tmp_path / "plan", model=model, cache=str(tmp_path / "cache"), **options)
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert not made["memory"]["fits"]
    assert made["memory"]["total"] > made["memory"]["limit"]
    assert made["estimate"] is None
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    assert "params/head/kernel" in said
    assert "no time is estimated" in said
