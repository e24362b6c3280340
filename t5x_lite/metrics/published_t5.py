"""Published results of the T5 paper by task (Raffel et al. 2020, tables 10, 14 and 16).

Scores are by "task/metric", as those of runs are; "glue/average" and "super_glue/average" as
printed. `published_t5_study` has the tables of the study.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from t5x_lite.metrics.published_t5_study import COLUMN_METRICS, STUDY_TABLES

_GLUE = (
    "glue_cola_v002/matthews_corrcoef",
    "glue_sst2_v002/accuracy",
    "glue_mrpc_v002/f1",
    "glue_mrpc_v002/accuracy",
    "glue_stsb_v002/pearson_corrcoef",
    "glue_stsb_v002/spearman_corrcoef",
    "glue_qqp_v002/f1",
    "glue_qqp_v002/accuracy",
    "glue_mnli_matched_v002/accuracy",
    "glue_mnli_mismatched_v002/accuracy",
    "glue_qnli_v002/accuracy",
    "glue_rte_v002/accuracy",
)
_SUPER_GLUE = (
    "super_glue_boolq_v102/accuracy",
    "super_glue_cb_v102/mean_3class_f1",
    "super_glue_cb_v102/accuracy",
    "super_glue_copa_v102/accuracy",
    "super_glue_multirc_v102/f1",
    "super_glue_multirc_v102/exact_match",
    "super_glue_record_v102/f1",
    "super_glue_record_v102/em",
    "super_glue_rte_v102/accuracy",
    "super_glue_wic_v102/accuracy",
    "super_glue_wsc_v102_simple_eval/accuracy",
)
_SQUAD = ("squad_v010_allanswers/em", "squad_v010_allanswers/f1")
_TRANSLATION = ("wmt_t2t_ende_v003/bleu", "wmt15_enfr_v003/bleu", "wmt16_enro_v003/bleu")
_SUMMARIES = tuple(f"cnn_dailymail_v002/{kind}" for kind in ("rouge1", "rouge2", "rougeLsum"))
_TEST_COLUMNS = (
    *("glue/average", *_GLUE, "glue_wnli_v002_simple_eval/accuracy"),
    *(*_SQUAD, "super_glue/average", *_SUPER_GLUE),
    *(*_TRANSLATION, *_SUMMARIES),
)
_VALIDATION_COLUMNS = (
    *("glue/average", *_GLUE, "super_glue/average", *_SUPER_GLUE),
    *(*_SUMMARIES, *_SQUAD),
)


class Published(NamedTuple):
    """A row of a table of the paper.

    Attributes:
        name: Name of the model.
        split: Split of GLUE and SuperGLUE; SQuAD is always its validation set.
        scores: Scores by "task/metric".
    """

    name: str
    split: str
    scores: Mapping[str, float]


def _row(name: str, split: str, columns: Sequence[str], *values: Sequence[float]) -> Published:
    figures = [figure for line in values for figure in line]
    return Published(name, split, dict(zip(columns, figures, strict=True)))


# Table 14: the final models, multi-task pretrained, each task fine-tuned on its own.
_FINAL = (
    _row(
        *("previous best", "test", _TEST_COLUMNS),
        (89.4, 69.2, 97.1, 93.6, 91.5, 92.7, 92.3, 74.8, 90.7, 91.3, 91.0, 99.2, 89.2, 91.8),
        (90.1, 95.5, 84.6, 87.1, 90.5, 95.2, 90.6, 84.4, 52.5, 90.6, 90.0, 88.2, 69.9, 89.0),
        (33.8, 43.8, 38.5, 43.47, 20.30, 40.63),
    ),
    _row(
        *("T5 small", "test", _TEST_COLUMNS),
        (77.4, 41.0, 91.8, 89.7, 86.6, 85.6, 85.0, 70.0, 88.0, 82.4, 82.3, 90.3, 69.9, 69.2),
        (79.10, 87.24, 63.3, 76.4, 56.9, 81.6, 46.0, 69.3, 26.3, 56.3, 55.4, 73.3, 66.9, 70.5),
        (26.7, 36.0, 26.8, 41.12, 19.56, 38.35),
    ),
    _row(
        *("T5 base", "test", _TEST_COLUMNS),
        (82.7, 51.1, 95.2, 90.7, 87.5, 89.4, 88.6, 72.6, 89.4, 87.1, 86.2, 93.7, 80.1, 78.8),
        (85.44, 92.08, 76.2, 81.4, 86.2, 94.0, 71.2, 79.7, 43.1, 75.0, 74.2, 81.5, 68.3, 80.8),
        (30.9, 41.2, 28.0, 42.05, 20.34, 39.40),
    ),
    _row(
        *("T5 large", "test", _TEST_COLUMNS),
        (86.4, 61.2, 96.3, 92.4, 89.9, 89.9, 89.2, 73.9, 89.9, 89.9, 89.6, 94.8, 87.2, 85.6),
        (86.66, 93.79, 82.3, 85.4, 91.6, 94.8, 83.4, 83.3, 50.7, 86.8, 85.9, 87.8, 69.3, 86.3),
        (32.0, 41.5, 28.1, 42.50, 20.68, 39.75),
    ),
    _row(
        *("T5 3B", "test", _TEST_COLUMNS),
        (88.5, 67.1, 97.4, 92.5, 90.0, 90.6, 89.8, 74.4, 89.7, 91.4, 91.2, 96.3, 91.1, 89.7),
        (88.53, 94.95, 86.4, 89.9, 90.3, 94.4, 92.0, 86.8, 58.3, 91.2, 90.4, 90.7, 72.1, 90.4),
        (31.8, 42.6, 28.2, 42.72, 21.02, 39.94),
    ),
    _row(
        *("T5 11B", "test", _TEST_COLUMNS),
        (90.3, 71.6, 97.5, 92.8, 90.4, 93.1, 92.8, 75.1, 90.6, 92.2, 91.9, 96.9, 92.8, 94.5),
        (91.26, 96.22, 88.9, 91.2, 93.9, 96.8, 94.8, 88.1, 63.3, 94.1, 93.4, 92.5, 76.9, 93.8),
        (32.1, 43.4, 28.1, 43.52, 21.55, 40.69),
    ),
)
# Table 16: base size, pretrained on C4 only, all tasks of a benchmark fine-tuned together.
_STUDY = (
    _row(
        *("T5 study baseline", "validation", _VALIDATION_COLUMNS),
        (83.28, 53.84, 92.68, 92.07, 88.92, 88.02, 87.94, 88.67, 91.56, 84.24, 84.57, 90.48, 76.28),
        (71.36, 76.62, 91.22, 91.96, 66.20, 66.13, 25.78, 69.05, 68.16, 75.34, 68.04, 78.56),
        (41.33, 19.24, 38.77, 80.88, 88.81),
    ),
    _row(
        *("T5 study, no pretraining", "validation", _VALIDATION_COLUMNS),
        (66.22, 12.29, 80.62, 81.42, 73.04, 72.58, 72.97, 81.94, 86.62, 68.02, 67.98, 75.69, 58.84),
        (53.04, 65.38, 71.61, 76.79, 62.00, 59.10, 0.84, 20.33, 17.95, 54.15, 54.08, 65.38),
        (39.19, 17.60, 36.69, 50.31, 61.97),
    ),
    _row(
        *("T5 study, spans of 3", "validation", _VALIDATION_COLUMNS),
        (83.49, 53.90, 92.43, 92.25, 89.46, 87.49, 87.53, 88.72, 91.51, 84.85, 84.84, 90.99, 77.26),
        (72.53, 76.85, 94.37, 94.64, 70.00, 67.64, 28.75, 70.84, 69.90, 74.73, 67.71, 77.88),
        (41.50, 19.62, 38.94, 81.84, 89.66),
    ),
)
# Table 10: methods of fine-tuning the study's baseline.
_METHODS = tuple(
    _row(name, "validation", tuple(COLUMN_METRICS.values()), figures)
    for name, figures in STUDY_TABLES["finetuning_methods"].rows.items()
)

PUBLISHED: Mapping[str, Published] = {row.name: row for row in (*_FINAL, *_STUDY, *_METHODS)}
