import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.reporting.runs import differences, read_run, read_runs, settings


def test_a_configuration_is_read_as_gin_wrote_it():
    text = (
        "import t5x_lite\nfrom t5x_lite.run import train\n\n# Macros:\n# ====\nBATCH_SIZE = 8\n"
        "# Parameters for plan.Data:\nplan.Data.task_providers = \\\n"
        "    (@tasks.EmbeddedCorpus(),\n"
        "     @tasks.Other())\nscope/Loss.z_loss = 0.0001\nLoss.name = 'a = b'\n"
    )
    assert settings(text) == {
        "BATCH_SIZE": "8",
        "plan.Data.task_providers": "(@tasks.EmbeddedCorpus(), @tasks.Other())",
        "scope/Loss.z_loss": "0.0001",
        "Loss.name": "'a = b'",
    }


def test_the_real_operative_config_gives_the_values_that_were_bound(tmp_path):
    """What gin itself writes, long values on several lines, comes back whole."""
    import gin

    gin.clear_config()
    try:
        long = {f"a_feature_with_a_long_name_{i}": i for i in range(6)}
        with gin.unlock_config():
            gin.bind_parameter("%SMALL", 3)
            gin.bind_parameter("%LONG", long)
            found = settings(gin.config_str())
    finally:
        gin.clear_config()
    assert found["SMALL"] == "3"
    assert eval(found["LONG"]) == long


def test_only_what_differs_and_matters_is_told(make_run):
    same = {"BATCH_SIZE": "8", "MODEL_DIR": "'a'", "Loss.z_loss": "0.1"}
    one = make_run("one", settings=same)
    other = make_run("other", settings=same | {"MODEL_DIR": "'b'", "Loss.z_loss": "0.2", "X": "1"})
    found = differences(read_runs([one, other]))
    assert found == [("Loss.z_loss", ["0.1", "0.2"]), ("X", ["", "1"])]


def test_runs_of_the_same_name_are_told_apart_by_where_they_are(make_run):
    first, second = make_run("a/run"), make_run("b/run")
    assert [run.name for run in read_runs([first, second])] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([first])] == ["run"]


def test_series_latest_values_and_shares_of_a_mixture(make_run):
    run = read_run(make_run("one", losses=[4.0, 3.0]))
    steps, losses = run.series("train", "loss")
    assert (steps.tolist(), losses.tolist()) == ([10, 20], [4.0, 3.0])
    assert run.latest("validation/task_a", "loss") == pytest.approx(3.1)
    assert run.latest("validation/task_a", "none") is None
    assert run.median("train", "tokens_per_second") == 1500.0
    assert run.last_step == 20
    assert run.mixture_rows() == [("task_a", 0.7, 0.75, 0.2), ("task_b", 0.3, 0.25, 0.4)]


def test_what_is_no_run_and_what_is_given_twice_is_refused(make_run, tmp_path):
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl"):
        read_run(tmp_path)
    one = make_run("one")
    with pytest.raises(ConfigError, match="given twice"):
        read_runs([one, one.parent / "one"])
