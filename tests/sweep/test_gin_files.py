"""The shipped studies: what each row comes to is what the study's tables say of it."""

import re
from pathlib import Path

import pytest

from t5x_lite.data.tasks.mixing_rates import ExamplesProportionalRate
from t5x_lite.metrics.published_t5_study import STUDY_TABLES
from t5x_lite.models.transformer import abstract_model, num_parameters
from t5x_lite.suites.t5 import Study
from t5x_lite.tree_paths import flatten

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
STUDIES = sorted(p.stem for p in (GIN_CONFIGS / "explore").glob("*.gin") if p.stem != "base")
PARAMETERS = {  # facts: exact counts at base size
    "encoder-decoder, denoising": 222_903_552,
    "shared encoder-decoder, denoising": 137_949_312,
    "half depth, denoising": 123_790_080,
    "language model, denoising": 109_628_544,
    "prefix LM, denoising": 109_628_544,
    "language model, LM": 109_628_544,
    "2x size, 2x steps": 502_746_112,
    "4x size, 1x steps": 972_590_080,
}
AT_BASE = {"4,096 times": 4096, "1,024 times": 1024, "256 times": 256, "64 times": 64}


def header(name):
    text = (GIN_CONFIGS / "explore" / f"{name}.gin").read_text()
    return re.match(r"(#.*\n)+", text)[0]


@pytest.mark.parametrize("name", STUDIES)
def test_a_header_gives_the_command_the_table_and_what_data_it_takes(name, study):
    found, given = header(name), study(name)["study"]
    assert f"\n#   t5x_lite explore --gin_file=explore/{name}.gin" in found
    published = re.search(r"\n# Published: (.*)", found)[1]
    for table in given.tables:
        number = re.search(r"table (\d+)", STUDY_TABLES[table].source)[1]
        low, high = re.search(r"tables? (\d+)(?: to (\d+))?", published).groups()
        assert int(low) <= int(number) <= int(high or low)
    needs = " ".join(found.replace("#", "").split())
    assert "C4" in needs
    assert ("--scale=tiny needs no data" in needs) == ("tiny" in study(name)["scales"])


@pytest.mark.parametrize("name", STUDIES)
def test_rows_are_those_of_the_published_tables(name, study):
    given = study(name)["study"]
    tables = [STUDY_TABLES[table] for table in given.tables]
    assert given.tables
    assert given.baseline in {table.baseline for table in tables}
    same = {table.baseline for table in tables}  # under another name in each
    assert {*given.rows} - same == {row for table in tables for row in table.rows} - same
    if len(tables) == 1:
        assert {*given.rows} == {*tables[0].rows}
    assert {*study(name)["scales"]["base"].columns} <= {c for t in tables for c in t.columns}


def test_every_comparison_of_the_study_has_a_gin_file(study):
    tables = {table for name in STUDIES for table in study(name)["study"].tables}
    assert tables == {*STUDY_TABLES} - {"final"}  # the released models, which have recipes
    assert {study(name)["study"].name for name in STUDIES} == {*STUDIES}


@pytest.mark.parametrize("scale", ["tiny", "base", pytest.param("small", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_can_be_trained_and_no_two_are_the_same(name, scale, study, planned):
    if scale not in study(name)["scales"]:
        return
    seen = {}
    for row, plan in planned(name, scale).items():
        keys = frozenset(stage.key for stage in plan.stages[0])
        assert seen.setdefault(keys, row) == row
        for stage in plan.stages[0]:
            assert set(stage.needs) <= keys
        if plan.pretraining is not None:
            assert plan.pretraining.flops > 0


def test_the_documentation_lists_every_study():
    text = (GIN_CONFIGS.parent / "docs" / "explore_studies.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.M)) == STUDIES


def test_studies_share_the_runs_that_they_have_in_common(study, planned):
    def keys(name, row):
        return [stage.key for stage in planned(name, "tiny")[row].stages[0]]

    baselines = {
        tuple(keys(name, study(name)["study"].baseline))
        for name in STUDIES
        if "tiny" in study(name)["scales"] and name != "activations"
    }
    assert len(baselines) == 1
    assert keys("mixing", "examples, K = 2^19") == keys("multitask", "multi-task training")
    assert keys("span_lengths", "spans of 3") == keys("objectives", "spans of 3")


@pytest.mark.parametrize("name", STUDIES)
def test_the_baseline_at_base_scale_is_the_studys(name, study, call):
    if name.startswith("activations"):
        return  # another paper's
    given = call(name, "base", study(name)["study"].baseline)
    assert (given["steps"], given["batch_size"]) == (2**19, 128)
    assert given["data"].feature_lengths == {"inputs": 512, "targets": 192}
    assert given["data"].mixture_or_task_name == "c4_v020_unsupervised"
    assert (given["model"].dropout_rate, given["loss"].z_loss) == (0.1, 1e-4)
    assert num_parameters(given["model"]) == 222_903_552
    rate = given["learning_rate"]
    assert float(rate(0)) == pytest.approx(0.01)
    assert float(rate(40_000)) == pytest.approx(0.005)
    assert float(rate(2**19)) == 0
    tuned = call(name, "base", study(name)["study"].baseline, "cnn_dailymail")
    assert (tuned["steps"], tuned["batch_size"]) == (2**18, 128)
    assert float(tuned["learning_rate"](1000)) == pytest.approx(1e-3)
    assert tuned["evaluation"].period == 5000


@pytest.mark.parametrize("row", PARAMETERS)
def test_models_have_the_published_sizes(row, study, call):
    name = "scaling" if "size" in row else "architectures"
    assert num_parameters(call(name, "base", row)["model"]) == PARAMETERS[row]


def test_objectives_have_the_lengths_that_their_files_tell(study, call):
    for name in ("objectives", "corruption_rates", "span_lengths", "architectures"):
        for row, changes in study(name)["study"].rows.items():
            changes = [change for change in changes if isinstance(change, str)]
            files = [change for change in changes if change.endswith(".gin")]
            text = (GIN_CONFIGS / (files or ["objectives/replace_spans.gin"])[0]).read_text()
            lines = re.findall(r"^#   (?:(.* = .*): )?TASK_FEATURE_LENGTHS = (.*)$", text, re.M)
            lengths = next((found for change, found in lines if change in changes), lines[0][1])
            assert call(name, "base", row)["data"].feature_lengths == eval(lengths), row


def test_repeated_text_is_that_of_table_9(call):
    for row, times in AT_BASE.items():
        found = call("repeated_data", "base", f"repeated {row}")
        assert found["data"].max_text_tokens == 2**35 // times
        tuned = call("repeated_data", "tiny", f"repeated {row}")
        tokens = tuned["steps"] * tuned["batch_size"] * tuned["data"].feature_lengths["inputs"]
        assert tuned["data"].max_text_tokens == tokens // times
    assert call("repeated_data", "base", "not repeated")["data"].max_text_tokens is None


def test_mixtures_are_those_of_table_11(call):
    def declared(row):
        given = call("mixing", "base", row)
        assert given["steps"] == 2**19 + 2**18
        [study] = given["data"].task_providers
        assert isinstance(study, Study)
        return study.mixtures()[given["data"].mixture_or_task_name]

    for power in range(16, 22):
        rates = dict(declared(f"examples, K = 2^{power}"))
        assert rates["squad_v010_allanswers"] == ExamplesProportionalRate(2**power, 1.0)
    for temperature in (2, 4, 8):
        rates = dict(declared(f"temperature {temperature}"))
        assert rates["c4_v020_unsupervised"] == ExamplesProportionalRate(2**21, float(temperature))
    assert {rate for _, rate in declared("equal")} == {1.0}


def test_steps_of_multi_task_training_are_those_of_both_phases(planned):
    for scale in ("tiny", "small", "base"):
        rows = planned("mixing", scale)
        both = rows["pretraining and fine-tuning"]
        [tuned] = {cost.steps for cost in both.fine_tuning.values()}
        for row in ("equal", "temperature 2"):
            assert rows[row].pretraining.steps == both.pretraining.steps + tuned
            assert not rows[row].fine_tuning


def test_a_task_is_left_out_of_its_own_pretraining_alone(planned, read_call):
    for scale, number in (("tiny", 2), ("base", 7)):
        row = planned("multitask", scale)["leave-one-out pretraining, fine-tuning"]
        first = [stage for stage in row.stages[0] if not stage.task]
        assert len({stage.key for stage in first}) == number
        by_key = {stage.key: stage for stage in row.stages[0]}
        for stage in row.stages[0]:
            if stage.task:
                [before] = (by_key[key] for key in stage.needs)
                assert before.name.endswith(f".pretrain.{stage.task}")
                data = read_call("train", before.text({before.key: "x"}))[0]["data"]
                told = read_call("train", stage.text(dict.fromkeys(by_key, "x")))[0]["data"]
                of_task = told.mixture_or_task_name
                assert data.mixture_or_task_name == f"leave_one_out_{of_task}"


def test_supervised_pretraining_draws_no_text(call):
    given = call("multitask", "base", "supervised pretraining, fine-tuning")
    [study] = given["data"].task_providers
    rates = dict(study.mixtures()[given["data"].mixture_or_task_name])
    assert rates["c4_v020_unsupervised"] == 0
    assert rates["wmt15_enfr_v003"] == ExamplesProportionalRate(2**19, 1.0)
    assert given["data"].feature_lengths == {"inputs": 512, "targets": 512}


def test_scaling_spends_four_times_the_compute(planned):
    rows = planned("scaling", "base")
    base = rows["baseline"].pretraining.flops
    for row in ("1x size, 4x steps", "1x size, 4x batch"):
        assert rows[row].pretraining.flops == pytest.approx(4 * base)
        assert rows[row].fine_tuning["cnn_dailymail"].flops == pytest.approx(
            4 * rows["baseline"].fine_tuning["cnn_dailymail"].flops
        )
    for row in ("2x size, 2x steps", "4x size, 1x steps"):
        assert 3.5 * base < rows[row].pretraining.flops < 5 * base
    trained = {
        row: [s for s in rows[row].stages[0] if s.kind == "train"]
        for row in ("4x ensembled", "4x ensembled, fine-tuning only")
    }
    assert [sum(not s.task for s in stages) for stages in trained.values()] == [4, 1]
    assert [sum(s.task == "cnn_dailymail" for s in stages) for stages in trained.values()] == [4, 4]


def test_gated_feed_forwards_have_as_many_weights(call):
    for scale, exact in (("small", 1e-3), ("tiny", 1e-2)):
        plain, gated = (
            num_parameters(call("activations", scale, row)["model"]) for row in ("ReLU", "GEGLU")
        )
        assert gated == pytest.approx(plain, rel=exact)
    plain = num_parameters(call("activations", "base", "ReLU")["model"])
    for row in ("GLU", "Bilinear", "GEGLU", "SwiGLU", "ReGLU"):
        given = call("activations", "base", row)
        assert num_parameters(given["model"]) == plain
        assert (given["steps"], given["batch_size"]) == (65_536, 128)
        assert given["data"].feature_lengths == {"inputs": 512, "targets": 114}
        assert given["model"].dropout_rate == 0
    assert call("activations_524288", "base", "GEGLU")["steps"] == 2**19


def test_methods_of_fine_tuning_train_what_they_say_from_one_pretraining(planned, call):
    for scale, layers in (("tiny", 2), ("small", 6), ("base", 12)):
        rows = planned("finetuning_methods", scale)
        assert len({row.stages[0][0].key for row in rows.values()}) == 1
        task = next(iter(rows["all parameters"].fine_tuning))
        given = call("finetuning_methods", scale, "gradual unfreezing", task)
        assert given["optimizer"].episode_steps == given["steps"] // layers
    for width in (32, 128, 512, 2048):
        given = call("finetuning_methods", "base", f"adapters, {width}", "cnn_dailymail")
        assert given["model"].adapter_dim == width
        _, shapes, axes = abstract_model(given["model"])
        trained = flatten(shapes).keys() - given["optimizer"].for_weights(shapes, axes).frozen
        assert all("adapter" in path or "norm" in path for path in trained)
