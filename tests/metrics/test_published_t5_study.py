"""The study's tables hold together, with one another and with the scores of single tasks."""

import pytest

from t5x_lite.metrics.published_t5 import PUBLISHED
from t5x_lite.metrics.published_t5_study import (
    BASELINE,
    BASELINE_STD,
    COLUMN_METRICS,
    COLUMNS,
    NOISE_STDS,
    STUDY_TABLES,
)

OF_SCORES = {name: table for name, table in STUDY_TABLES.items() if table.columns == COLUMNS}
ROWS = {
    "pretraining": 2,
    "architectures": 10,
    "high_level_objectives": 4,
    "corruption_strategies": 4,
    "corruption_rates": 4,
    "span_lengths": 5,
    "data_sets": 6,
    "repeated_data": 5,
    "finetuning_methods": 6,
    "mixing": 11,
    "multitask": 5,
    "scaling": 7,
    "final": 3,
    "activations": 8,
}


def beyond_noise(name, row):
    """What is better, and what is worse, than the baseline by more than its runs differ."""
    differences = {
        column: (figure - base, NOISE_STDS * deviation)
        for column, figure, base, deviation in zip(
            COLUMNS, STUDY_TABLES[name].rows[row], BASELINE, BASELINE_STD, strict=True
        )
    }
    better = {column for column, (by, noise) in differences.items() if by > noise}
    worse = {column for column, (by, noise) in differences.items() if by < -noise}
    return better, worse


def test_every_row_has_a_figure_for_every_column():
    assert {name: len(table.rows) for name, table in STUDY_TABLES.items()} == ROWS
    for name, table in STUDY_TABLES.items():
        for row, figures in table.rows.items():
            assert len(figures) == len(table.columns), (name, row)
            assert all(figure > 0 for figure in figures), (name, row)


def test_the_baseline_is_the_same_in_every_table():
    for name, table in OF_SCORES.items():
        assert table.rows[table.baseline] == BASELINE, name
        assert list(table.rows.values()).count(BASELINE) == 1, name
    assert STUDY_TABLES["activations"].baseline == "ReLU"


def test_rows_that_two_tables_share_are_the_same():
    objectives, strategies = (
        STUDY_TABLES[name].rows for name in ("high_level_objectives", "corruption_strategies")
    )
    assert objectives["BERT-style"] == strategies["BERT-style"]
    proportional = STUDY_TABLES["mixing"].rows["examples, K = 2^19"]
    assert STUDY_TABLES["multitask"].rows["multi-task training"] == proportional


@pytest.mark.parametrize(
    ("table", "row", "of_tasks"),
    [
        ("span_lengths", "i.i.d.", "T5 study baseline"),
        ("span_lengths", "spans of 3", "T5 study, spans of 3"),
        ("pretraining", "no pretraining", "T5 study, no pretraining"),
        ("finetuning_methods", "adapters, 2048", "adapters, 2048"),
    ],
)
def test_averages_are_those_that_stand_beside_the_scores_of_single_tasks(table, row, of_tasks):
    scores = PUBLISHED[of_tasks].scores
    figures = zip(COLUMN_METRICS.values(), STUDY_TABLES[table].rows[row], strict=True)
    shared = {metric: figure for metric, figure in figures if metric in scores}
    assert {"glue/average", "super_glue/average", "squad_v010_allanswers/em"} <= set(shared)
    assert {metric: scores[metric] for metric in shared} == shared


@pytest.mark.parametrize(
    ("table", "row", "column", "figure"),
    [
        ("architectures", "language model, LM", "SQuAD", 53.81),
        ("architectures", "prefix LM, denoising", "EnRo", 27.39),
        ("high_level_objectives", "deshuffling", "GLUE", 73.17),
        ("corruption_strategies", "drop tokens", "SGLUE", 68.67),
        ("corruption_rates", "50 %", "EnFr", 39.90),
        ("span_lengths", "spans of 10", "EnDe", 26.79),
        ("data_sets", "Wikipedia + TBC", "SQuAD", 82.08),
        ("repeated_data", "repeated 4,096 times", "SGLUE", 59.29),
        ("finetuning_methods", "adapters, 512", "EnFr", 33.98),
        ("mixing", "temperature 2", "GLUE", 81.90),
        ("multitask", "leave-one-out pretraining, fine-tuning", "CNNDM", 19.05),
        ("scaling", "4x ensembled", "CNNDM", 20.10),
        ("final", "baseline, 1T tokens", "EnRo", 28.34),
        ("activations", "GEGLU", "524,288 steps", 1.633),
    ],
)
def test_figures_stand_in_their_rows_and_columns(table, row, column, figure):
    found = STUDY_TABLES[table]
    assert found.rows[row][found.columns.index(column)] == figure


def test_the_baseline_leads_the_architectures_in_every_column():
    for column in zip(*STUDY_TABLES["architectures"].rows.values(), strict=True):
        assert max(column) == column[0]
        assert column.count(column[0]) == 1


def test_what_the_study_concludes_lies_beyond_noise():
    for row in ("prefix LM", "deshuffling"):
        assert {"GLUE", "SQuAD", "SGLUE"} <= beyond_noise("high_level_objectives", row)[1]
    assert {"GLUE", "SQuAD"} <= beyond_noise("corruption_rates", "50 %")[1]
    better, worse = beyond_noise("span_lengths", "spans of 3")
    assert better == {"CNNDM", "SQuAD", "SGLUE"}
    assert not worse
    assert beyond_noise("repeated_data", "repeated 64 times") == (set(), set())
    assert {"GLUE", "CNNDM", "SQuAD", "SGLUE", "EnDe"} <= beyond_noise("mixing", "equal")[1]


def test_a_gated_feed_forward_loses_less_than_any_plain_one():
    table = STUDY_TABLES["activations"]
    plain = {row: table.rows[row] for row in ("ReLU", "GELU", "Swish")}
    gated = {row: figures for row, figures in table.rows.items() if row not in plain}
    assert table.lower_is_better
    for column in range(2):
        assert max(row[column] for row in gated.values()) < min(r[column] for r in plain.values())
