"""Studies as `t5x_lite explore` leaves them: what is noise, and ours beside the published."""

import csv
import json
import statistics

import pytest

from t5x_lite.metrics.published_t5_study import STUDY_TABLES
from t5x_lite.reporting.report import report
from t5x_lite.reporting.studies import HELD_OUT, read_studies

SCORES = {  # by row, of two seeds or three
    "replace spans": [3.0, 3.1, 3.2],
    "BERT-style": [3.25, 3.25, 3.28],
    "deshuffling": [3.4, 3.5],
    "prefix LM": [2.8],
}


@pytest.fixture
def study(tmp_path, make_run):
    """Write a study of four rows, and the runs it was made of."""

    def seed(row, number, loss):
        name = f"runs/{row}-{number}"
        if number == 0:
            make_run(name, losses=[9.0, loss])
        state = {"state": "done", "reason": "", "seconds": 90.0, "runs": [name]}
        scores = {"loss": loss, "exact": 10 - loss}
        return {"seed": number, "scores": scores, "held_out": {"text/loss": 2 * loss}, **state}

    rows = [
        {
            "name": row,
            "changes": ["objectives/x.gin"] if row != "replace spans" else [],
            "pretraining": {"steps": 100, "flops": 1e12 * (place + 1)},
            "fine_tuning": {"name": {"steps": 20, "flops": 1e10}},
            "seeds": [seed(row, number, loss) for number, loss in enumerate(losses)],
        }
        for place, (row, losses) in enumerate(SCORES.items())
    ]
    failed = {"seed": 1, "scores": {}, "held_out": {}, "seconds": 0.0, "runs": []}
    rows[-1]["seeds"].append({**failed, "state": "failed", "reason": "exit code 1: <b>no</b>"})
    content = {
        "name": "objectives",
        "title": "Objectives",
        "scale": "tiny",
        "matched": "steps",
        "baseline": "replace spans",
        "tables": ["high_level_objectives"],
        "columns": {"loss": ["name", "name/loss"], "exact": ["name", "name/accuracy"]},
        "rows": rows,
    }
    (tmp_path / "objectives.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("[]")
    return tmp_path


def test_a_score_is_the_mean_over_seeds_with_their_standard_deviation(study):
    (found,) = read_studies(study)
    score = found.row("replace spans").score("loss")
    assert score == (pytest.approx(3.1), pytest.approx(0.1), 3)
    assert found.row("prefix LM").score("loss") == (2.8, None, 1)
    assert found.row("deshuffling").score(HELD_OUT).mean == pytest.approx(6.9)


def test_differences_within_two_standard_deviations_of_the_baseline_are_noise(study):
    (found,) = read_studies(study)
    verdicts = {row.name: found.verdict(row, "loss") for row in found.rows}
    assert verdicts == {
        "replace spans": "",
        "BERT-style": "noise",
        "deshuffling": "worse",
        "prefix LM": "better",
    }
    # The same numbers the other way round, where more is better.
    assert found.verdict(found.row("deshuffling"), "exact") == "worse"
    assert found.verdict(found.row("prefix LM"), "exact") == "better"


def test_published_figures_are_judged_by_the_published_spread(study):
    (found,) = read_studies(study)
    verdicts = found.published_verdicts(found.row("BERT-style"))
    assert verdicts["GLUE"] == "noise"  # 82.96 against 83.28 with 0.235
    assert verdicts["SGLUE"] == "worse"  # 69.85 against 71.36 with 0.416
    assert verdicts["EnFr"] == "better"  # 40.03 against 39.82 with 0.090
    assert set(found.published_verdicts(found.row("deshuffling")).values()) == {"worse"}


def test_a_study_becomes_a_page_tables_and_pictures(study, tmp_path):
    report(runs=[str(study)], output=str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    published = STUDY_TABLES["high_level_objectives"].rows["deshuffling"]
    (line,) = [x for x in text.splitlines() if x.startswith("| deshuffling | 2 |")]
    spread = statistics.stdev(SCORES["deshuffling"])
    assert f"3.450 ± {spread:.3f} ▼" in line
    assert all(f"{value:.2f} ▼" in line for value in published)
    assert "other sizes and other data" in text
    assert "| deshuffling | 7 worse of 7 | 2 worse of 2 | yes |" in text
    assert "| prefix LM | 4 worse of 7 | 2 better of 2 | no |" in text
    assert "| BERT-style | 1 better, 2 worse of 7 | noise of 2 | not seen |" in text
    assert "| prefix LM | 1 | exit code 1: <b>no</b> |" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>no</b>" not in page
    assert page.count("<img") == len(list((tmp_path / "out").glob("*.png")))
    with open(tmp_path / "out" / "table_1.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["replace spans (baseline)", *list(SCORES)[1:]]
    assert rows[0]["GLUE (published)"] == "83.28"


def test_one_study_of_a_directory_and_runs_share_a_page(study, make_run, tmp_path):
    runs = [str(study / "objectives.json"), str(make_run("alone"))]
    report(runs=runs, output=str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Objectives: scores at scale tiny" in text
    assert "| alone | task_a | 30 |" in text


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_without_errors_or_requests(study, tmp_path, browser, width):
    report(runs=[str(study)], output=str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").as_uri()
    browser.set_window_size(width, 900)
    browser.get(page)
    shown = browser.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 0)"
    )
    assert shown
    assert all(shown)
    # Tables scroll within themselves; the page does not.
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {page}
