"""Tables of the T5 paper's study (Raffel et al. 2020, sections 3.2 to 3.6), for comparison.

Scores are those of single models of base size on validation sets, as printed: averages of GLUE and
SuperGLUE, ROUGE-2 of CNN/Daily Mail, exact match of SQuAD, BLEU of the translations.
`published_t5` has scores by task.
"""

from collections.abc import Mapping
from typing import NamedTuple

# Our names of the metrics in the columns.
COLUMN_METRICS: Mapping[str, str] = {
    "GLUE": "glue/average",
    "CNNDM": "cnn_dailymail_v002/rouge2",
    "SQuAD": "squad_v010_allanswers/em",
    "SGLUE": "super_glue/average",
    "EnDe": "wmt_t2t_ende_v003/bleu",
    "EnFr": "wmt15_enfr_v003/bleu",
    "EnRo": "wmt16_enro_v003/bleu",
}
COLUMNS = tuple(COLUMN_METRICS)

Figures = tuple[float, ...]

# Table 1, mean and standard deviation of ten runs that differ only in their seeds.
BASELINE: Figures = (83.28, 19.24, 80.88, 71.36, 26.98, 39.82, 27.65)
BASELINE_STD: Figures = (0.235, 0.065, 0.343, 0.416, 0.112, 0.090, 0.108)
NOISE_STDS = 2
"""Differences within this number of the baseline's standard deviations are not significant."""


class StudyTable(NamedTuple):
    """A table of the study.

    Attributes:
        title: Its subject.
        source: Paper and table.
        rows: Figures by name of the row.
        baseline: Name of the row that the others are compared with.
        columns: Names of the columns.
        lower_is_better: Whether the figures are losses.
    """

    title: str
    source: str
    rows: Mapping[str, Figures]
    baseline: str
    columns: tuple[str, ...] = COLUMNS
    lower_is_better: bool = False


_PRETRAINING = StudyTable(
    "With and without pretraining",
    "Raffel et al. 2020, table 1",
    {
        "pretraining": BASELINE,
        "no pretraining": (66.22, 17.60, 50.31, 53.04, 25.86, 39.77, 24.04),
    },
    "pretraining",
)
_ARCHITECTURES = StudyTable(
    "Architectures and objectives",
    "Raffel et al. 2020, table 2",
    {
        "encoder-decoder, denoising": BASELINE,
        "shared encoder-decoder, denoising": (82.81, 18.78, 80.63, 70.73, 26.72, 39.03, 27.46),
        "half depth, denoising": (80.88, 18.97, 77.59, 68.42, 26.38, 38.40, 26.95),
        "language model, denoising": (74.70, 17.93, 61.14, 55.02, 25.09, 35.28, 25.86),
        "prefix LM, denoising": (81.82, 18.61, 78.94, 68.11, 26.43, 37.98, 27.39),
        "encoder-decoder, LM": (79.56, 18.59, 76.02, 64.29, 26.27, 39.17, 26.86),
        "shared encoder-decoder, LM": (79.60, 18.13, 76.35, 63.50, 26.62, 39.17, 27.05),
        "half depth, LM": (78.67, 18.26, 75.32, 64.06, 26.13, 38.42, 26.89),
        "language model, LM": (73.78, 17.54, 53.81, 56.51, 25.23, 34.31, 25.38),
        "prefix LM, LM": (79.68, 17.84, 76.87, 64.86, 26.28, 37.51, 26.76),
    },
    "encoder-decoder, denoising",
)
_BERT_STYLE: Figures = (82.96, 19.17, 80.65, 69.85, 26.78, 40.03, 27.41)
_OBJECTIVES = StudyTable(
    "High-level objectives",
    "Raffel et al. 2020, table 4; the baseline from table 5",
    {
        "prefix LM": (80.69, 18.94, 77.99, 65.27, 26.86, 39.73, 27.49),
        "BERT-style": _BERT_STYLE,
        "deshuffling": (73.17, 18.59, 67.61, 58.47, 26.11, 39.30, 25.62),
        "replace spans": BASELINE,
    },
    "replace spans",
)
_STRATEGIES = StudyTable(
    "Corruption strategies",
    "Raffel et al. 2020, table 5",
    {
        "BERT-style": _BERT_STYLE,
        "MASS-style": (82.32, 19.16, 80.10, 69.28, 26.79, 39.89, 27.55),
        "replace spans": BASELINE,
        "drop tokens": (84.44, 19.31, 80.52, 68.67, 27.07, 39.76, 27.82),
    },
    "replace spans",
)
_RATES = StudyTable(
    "Corruption rates",
    "Raffel et al. 2020, table 6",
    {
        "10 %": (82.82, 19.00, 80.38, 69.55, 26.87, 39.28, 27.44),
        "15 %": BASELINE,
        "25 %": (83.00, 19.54, 80.96, 70.48, 27.04, 39.83, 27.47),
        "50 %": (81.27, 19.32, 79.80, 70.33, 27.01, 39.90, 27.49),
    },
    "15 %",
)
_SPANS = StudyTable(
    "Mean lengths of corrupted spans",
    "Raffel et al. 2020, table 7",
    {
        "i.i.d.": BASELINE,
        "spans of 2": (83.54, 19.39, 82.09, 72.20, 26.76, 39.99, 27.63),
        "spans of 3": (83.49, 19.62, 81.84, 72.53, 26.86, 39.65, 27.62),
        "spans of 5": (83.40, 19.24, 82.05, 72.23, 26.88, 39.40, 27.53),
        "spans of 10": (82.85, 19.33, 81.84, 70.44, 26.79, 39.49, 27.69),
    },
    "i.i.d.",
)
_DATA_SETS = StudyTable(
    "Data to pretrain on",
    "Raffel et al. 2020, table 8",
    {
        "C4": BASELINE,
        "C4, unfiltered": (81.46, 19.14, 78.78, 68.04, 26.55, 39.34, 27.21),
        "RealNews-like": (83.83, 19.23, 80.39, 72.38, 26.75, 39.90, 27.48),
        "WebText-like": (84.03, 19.31, 81.42, 71.40, 26.80, 39.74, 27.59),
        "Wikipedia": (81.85, 19.31, 81.29, 68.01, 26.94, 39.69, 27.67),
        "Wikipedia + TBC": (83.65, 19.28, 82.08, 73.24, 26.77, 39.63, 27.57),
    },
    "C4",
)
_REPEATED = StudyTable(
    "Repeated data",
    "Raffel et al. 2020, table 9",
    {
        "not repeated": BASELINE,
        "repeated 64 times": (82.87, 19.19, 80.97, 72.03, 26.83, 39.74, 27.63),
        "repeated 256 times": (82.62, 19.20, 79.78, 69.97, 27.02, 39.71, 27.33),
        "repeated 1,024 times": (79.55, 18.57, 76.27, 64.76, 26.38, 39.56, 26.80),
        "repeated 4,096 times": (76.34, 18.33, 70.92, 59.29, 26.37, 38.84, 25.81),
    },
    "not repeated",
)
_METHODS = StudyTable(
    "Methods of fine-tuning",
    "Raffel et al. 2020, table 10; adapters of 2,048 from table 16 (table 10 repeats those of 128)",
    {
        "all parameters": BASELINE,
        "adapters, 32": (80.52, 15.08, 79.32, 60.40, 13.84, 17.88, 15.54),
        "adapters, 128": (81.51, 16.62, 79.47, 63.03, 19.83, 27.50, 22.63),
        "adapters, 512": (81.54, 17.78, 79.18, 64.30, 23.45, 33.98, 25.81),
        "adapters, 2048": (82.62, 18.30, 79.40, 68.61, 25.64, 36.92, 26.93),
        "gradual unfreezing": (82.50, 18.95, 79.17, 70.79, 26.71, 39.02, 26.93),
    },
    "all parameters",
)
_PROPORTIONAL_2_19: Figures = (81.42, 19.24, 79.78, 67.30, 25.21, 36.30, 27.76)
_MIXING = StudyTable(
    "Mixing strategies of multi-task training",
    "Raffel et al. 2020, table 11",
    {
        "pretraining and fine-tuning": BASELINE,
        "equal": (76.13, 19.02, 76.51, 63.37, 23.89, 34.31, 26.78),
        "examples, K = 2^16": (80.45, 19.04, 77.25, 69.95, 24.35, 34.99, 27.10),
        "examples, K = 2^17": (81.56, 19.12, 77.00, 67.91, 24.36, 35.00, 27.25),
        "examples, K = 2^18": (81.67, 19.07, 78.17, 67.94, 24.57, 35.19, 27.39),
        "examples, K = 2^19": _PROPORTIONAL_2_19,
        "examples, K = 2^20": (80.80, 19.24, 80.36, 67.38, 25.66, 36.93, 27.68),
        "examples, K = 2^21": (79.83, 18.79, 79.50, 65.10, 25.82, 37.22, 27.13),
        "temperature 2": (81.90, 19.28, 79.42, 69.92, 25.42, 36.72, 27.20),
        "temperature 4": (80.56, 19.22, 77.99, 69.54, 25.04, 35.82, 27.45),
        "temperature 8": (77.21, 19.10, 77.14, 66.07, 24.55, 35.35, 27.17),
    },
    "pretraining and fine-tuning",
)
_MULTITASK = StudyTable(
    "Multi-task pretraining and fine-tuning",
    "Raffel et al. 2020, table 12",
    {
        "unsupervised pretraining, fine-tuning": BASELINE,
        "multi-task training": _PROPORTIONAL_2_19,
        "multi-task pretraining, fine-tuning": (83.11, 19.12, 80.26, 71.03, 27.08, 39.80, 28.07),
        "leave-one-out pretraining, fine-tuning": (81.98, 19.05, 79.97, 71.68, 26.93, 39.79, 27.87),
        "supervised pretraining, fine-tuning": (79.93, 18.96, 77.38, 65.36, 26.81, 40.13, 28.04),
    },
    "unsupervised pretraining, fine-tuning",
)
_SCALING = StudyTable(
    "Four times the compute",
    "Raffel et al. 2020, table 13",
    {
        "baseline": BASELINE,
        "1x size, 4x steps": (85.33, 19.33, 82.45, 74.72, 27.08, 40.66, 27.93),
        "1x size, 4x batch": (84.60, 19.42, 82.52, 74.64, 27.07, 40.60, 27.84),
        "2x size, 2x steps": (86.18, 19.66, 84.18, 77.18, 27.52, 41.03, 28.19),
        "4x size, 1x steps": (85.91, 19.73, 83.86, 78.04, 27.47, 40.71, 28.10),
        "4x ensembled": (84.77, 20.10, 83.09, 71.74, 28.05, 40.53, 28.57),
        "4x ensembled, fine-tuning only": (84.05, 19.57, 82.36, 71.55, 27.55, 40.22, 28.09),
    },
    "baseline",
)
_FINAL = StudyTable(
    "The baseline, its size on a trillion tokens, and T5 base",
    "Raffel et al. 2020, table 15",
    {
        "baseline": BASELINE,
        "baseline, 1T tokens": (84.80, 19.62, 83.01, 73.90, 27.46, 40.30, 28.34),
        "T5 base": (85.97, 20.90, 85.44, 75.64, 28.37, 41.37, 28.98),
    },
    "baseline",
)
_ACTIVATIONS = StudyTable(
    "Activations of the feed-forward",
    "Shazeer 2020, table 1 (validation loss in nats per token)",
    {
        "ReLU": (1.997, 1.677),
        "GELU": (1.983, 1.679),
        "Swish": (1.994, 1.683),
        "GLU": (1.982, 1.663),
        "Bilinear": (1.960, 1.648),
        "GEGLU": (1.942, 1.633),
        "SwiGLU": (1.944, 1.636),
        "ReGLU": (1.953, 1.645),
    },
    "ReLU",
    columns=("65,536 steps", "524,288 steps"),
    lower_is_better=True,
)

STUDY_TABLES: Mapping[str, StudyTable] = {
    "pretraining": _PRETRAINING,
    "architectures": _ARCHITECTURES,
    "high_level_objectives": _OBJECTIVES,
    "corruption_strategies": _STRATEGIES,
    "corruption_rates": _RATES,
    "span_lengths": _SPANS,
    "data_sets": _DATA_SETS,
    "repeated_data": _REPEATED,
    "finetuning_methods": _METHODS,
    "mixing": _MIXING,
    "multitask": _MULTITASK,
    "scaling": _SCALING,
    "final": _FINAL,
    "activations": _ACTIVATIONS,
}
