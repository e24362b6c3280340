"""What a study comes to: steps that match in compute, and hashes that tell runs apart."""

from pathlib import Path

import pytest

from t5x_lite.cli.main import read_command
from t5x_lite.errors import ConfigError
from t5x_lite.models.flops import train_step_flops
from t5x_lite.sweep.grid import Call, Compute, Planner, matched_steps, operative
from t5x_lite.sweep.spec import Scale, Sweep

CONFIGS = str(Path(__file__).parents[2] / "gin_configs")
TINY = Scale(
    pretrain=("explore/scales/tiny.gin",),
    finetune=("explore/scales/tiny_finetune.gin",),
    tasks={"name": ("MIXTURE_OR_TASK_NAME = 'embedded_name'",)},
    columns={"name": ("name", "embedded_name/loss")},
)
LM = ["objectives/lm.gin", "LENGTHS_OF_512 = {'inputs': 1, 'targets': 512}"]


@pytest.fixture(autouse=True)
def _no_bindings_left():
    import gin

    yield
    gin.clear_config()


def read(command, text):
    return read_command(command, text, ["", CONFIGS])


def planned(rows, *, seeds=(0,), everywhere=(), **changes):
    """The rows of a study, planned, by name; the first is the baseline."""
    study = Sweep(name="s", baseline=next(iter(rows)), rows=rows, **changes)
    found = Planner(study, TINY, "tiny", read, everywhere=everywhere).rows(seeds)
    return {row.row.name: row for row in found}


def keys(row, seed=0):
    return [stage.key for stage in row.stages[seed]]


def test_matched_steps_come_nearest_to_the_baselines_flops():
    base = Compute(steps=100, step_flops=30.0)
    assert base.flops == 3000.0
    assert matched_steps(base, 30.0) == 100
    assert matched_steps(base, 15.0) == 200
    assert matched_steps(base, 45.0) == 67  # 66.7
    assert matched_steps(base, 30.0, compute=4) == 400
    assert matched_steps(base, 1e9) == 1


def test_rows_of_matched_flops_cost_what_the_baseline_costs():
    rows = planned(
        {
            "base": ["TRAIN_STEPS = 200"],
            "half depth": {
                "times": {
                    "TransformerConfig.num_encoder_layers": 0.5,
                    "TransformerConfig.num_decoder_layers": 0.5,
                }
            },
            "LM": LM,
            "4x": {"times": {"BATCH_SIZE": 2}, "compute": 4},
        },
        matched="flops",
    )
    base = rows["base"].pretraining
    assert base.steps == 200
    half, lm, four = (rows[name].pretraining for name in ("half depth", "LM", "4x"))
    assert half.step_flops < base.step_flops < lm.step_flops
    for cost in (half, lm):
        assert abs(cost.flops - base.flops) <= cost.step_flops / 2
    assert half.steps > 200 > lm.steps
    assert four.step_flops == pytest.approx(2 * base.step_flops)
    assert four.steps == 400
    assert f"TRAIN_STEPS = {lm.steps}" in rows["LM"].stages[0][0].lines
    # Fine-tuning has the same steps for all.
    assert {row.fine_tuning["name"].steps for row in rows.values()} == {60}


def test_the_flops_are_those_of_the_configuration_that_is_trained():
    row = planned({"base": []})["base"]
    arguments, _ = read("train", row.stages[0][0].text({row.stages[0][0].key: "d"}))
    lengths = {"inputs": 64, "targets": 24}
    assert arguments["data"].feature_lengths == lengths
    expected = train_step_flops(
        arguments["model"], batch_size=arguments["batch_size"], lengths=lengths
    )
    assert row.pretraining == (arguments["steps"], expected)


def test_a_key_tells_all_that_counts_and_nothing_else():
    rows = planned(
        {
            "base": [],
            "said otherwise": ["objectives/replace_spans.gin", "ReplaceSpans.noise_density = 0.15"],
            "sparser": ["ReplaceSpans.noise_density = 0.1"],
            "tuned longer": {"finetune_times": {"TRAIN_STEPS": 2}},
        },
        seeds=(0, 1),
    )
    base = keys(rows["base"])
    assert keys(rows["said otherwise"]) == base
    assert not set(keys(rows["sparser"])) & set(base)
    assert keys(rows["tuned longer"])[0] == base[0]
    assert keys(rows["tuned longer"])[1] != base[1]
    assert not set(keys(rows["base"], 1)) & set(base)
    elsewhere = planned({"base": []}, everywhere=["DATA_DIR = '/elsewhere'"])["base"]
    assert keys(elsewhere) == base


def test_places_and_seeds_are_no_part_of_what_a_run_is():
    one = operative(Call({"model_dir": "a", "seed": 1, "mesh": {}, "steps": 3}, {}))
    assert one == "steps = 3"


def test_rows_differ_where_they_say():
    rows = planned(
        {
            "base": [],
            "no pretraining": {"pretrain": None},
            "as pretrained": {"pretrain": LM, "finetune": None},
            "four": {"ensemble": 4},
            "four tuned": {"ensemble": 4, "ensemble_of": "finetune"},
        }
    )
    (fresh,) = rows["no pretraining"].stages[0]
    assert not fresh.needs
    assert "INITIAL_CHECKPOINT_PATH" not in fresh.text({fresh.key: "d"})
    assert rows["no pretraining"].pretraining is None
    pretrained, judged = rows["as pretrained"].stages[0]
    assert (judged.kind, judged.needs) == ("evaluate", (pretrained.key,))
    assert rows["as pretrained"].scored_stages[0] == {"name": judged.key}
    four, tuned = rows["four"].stages[0], rows["four tuned"].stages[0]
    assert [stage.seed for stage in four] == [0, 0, 1000, 1000, 2000, 2000, 3000, 3000, 0]
    assert [stage.seed for stage in tuned] == [0, 0, 1000, 2000, 3000, 0]
    assert four[-1].kind == tuned[-1].kind == "evaluate"
    assert four[-1].needs == tuple(stage.key for stage in four[:-1] if stage.task)
    # An ensemble's first member is the row that it is an ensemble of.
    assert [stage.key for stage in four[:2]] == keys(rows["base"])


def test_a_mistake_in_a_row_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match=r"row 'wrong' of s: BATCH_SIZ is set"):
        planned({"base": [], "wrong": ["BATCH_SIZ = 4"]})
    with pytest.raises(ConfigError, match=r"row 'wrong' of s: MODEL_DIRS is None"):
        planned({"base": [], "wrong": {"times": {"MODEL_DIRS": 2}}})
    with pytest.raises(ConfigError, match=r"row 'wrong' of s: targets of 24 tokens are too short"):
        planned({"base": [], "wrong": ["ReplaceSpans.noise_density = 0.5"]})
    with pytest.raises(ConfigError, match="is not pretrained"):
        planned({"base": {"pretrain": None}}, matched="flops")
