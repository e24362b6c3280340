"""`t5x_lite report`, on directories as runs leave them."""

import re

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.reporting.report import report

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def results():
    sample = {"task": "task_a", "inputs": HOSTILE, "target": "t", "prediction": "p"}
    return {
        "step": 30,
        "seconds": 7200.0,
        "tasks": {"task_a": {"unigram": 5.25, "uniform": 8.0}},
        "samples": [sample],
    }


def test_a_run_becomes_a_page_that_needs_nothing_else(make_run, results, tmp_path):
    run = make_run("one", results=results, settings={"A.b": f"'{HOSTILE}'"})
    report(runs=[str(run)], output=str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;") == 2  # of the sample and of the configuration
    assert "<script" not in text
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert all(src.startswith("data:") for src in re.findall(r"(?:src|href)='([^']*)'", text))
    assert "5.250" in text  # the baseline
    assert "70.00%" in text  # planned
    assert "75.00%" in text  # drawn
    for name in ("training_loss", "validation_task_a", "task_loss", "update_norm", "speed"):
        png = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")


def test_several_runs_stand_beside_each_other(make_run, results, tmp_path):
    runs = [
        make_run("one", settings={"Loss.z_loss": "0.1"}, results=results),
        make_run("other", settings={"Loss.z_loss": "0.2"}, losses=[9.0]),
    ]
    report(runs=[str(run) for run in runs], output=str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| Loss.z_loss | 0.1 | 0.2 |" in text
    assert "| one | task_a | 30 | 1.600 | 5.250 | 25.0% |" in text
    assert "| other | task_a | 10 | 9.100 | - | 25.0% |" in text
    tables = sorted(path.name for path in (tmp_path / "out").glob("*.csv"))
    assert tables[0] == "table_1.csv"
    assert (tmp_path / "out" / "table_1.csv").read_text().startswith("run,task,step,loss")


def test_nothing_to_report_and_a_file_in_the_way_are_refused(make_run, tmp_path):
    with pytest.raises(ConfigError, match="no run is given"):
        report(runs=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        report(runs=[str(make_run("one"))], output=str(tmp_path / "file"))
