"""Averages of GLUE and SuperGLUE, computed as in the T5 paper.

Each task counts once: a task with two metrics by their mean, MNLI by the mean of its two sets. The
diagnostic sets do not count. WNLI counts on the test set only (Raffel et al. 2020, section 2.3).
"""

from collections.abc import Mapping, Sequence

import numpy as np

Scores = Mapping[str, float]  # by "task/metric"

_GLUE: Sequence[Sequence[str]] = (
    ("glue_cola_v002/matthews_corrcoef",),
    ("glue_sst2_v002/accuracy",),
    ("glue_mrpc_v002/f1", "glue_mrpc_v002/accuracy"),
    ("glue_stsb_v002/pearson_corrcoef", "glue_stsb_v002/spearman_corrcoef"),
    ("glue_qqp_v002/f1", "glue_qqp_v002/accuracy"),
    ("glue_mnli_matched_v002/accuracy", "glue_mnli_mismatched_v002/accuracy"),
    ("glue_qnli_v002/accuracy",),
    ("glue_rte_v002/accuracy",),
)
_WNLI = ("glue_wnli_v002_simple_eval/accuracy",)
_SUPER_GLUE: Sequence[Sequence[str]] = (
    ("super_glue_boolq_v102/accuracy",),
    ("super_glue_cb_v102/mean_3class_f1", "super_glue_cb_v102/accuracy"),
    ("super_glue_copa_v102/accuracy",),
    ("super_glue_multirc_v102/f1", "super_glue_multirc_v102/exact_match"),
    ("super_glue_record_v102/f1", "super_glue_record_v102/em"),
    ("super_glue_rte_v102/accuracy",),
    ("super_glue_wic_v102/accuracy",),
    ("super_glue_wsc_v102_simple_eval/accuracy",),
)


def benchmark_averages(scores: Scores, split: str = "validation") -> dict[str, float]:
    """Compute the averages of benchmarks.

    Args:
        scores: Scores by "task/metric".
        split: "validation" or "test", which decides whether WNLI counts.

    Returns:
        "glue" and "super_glue", each only if the scores of all its tasks are there: an average over
        some of them could be mistaken for the benchmark's.
    """
    benchmarks = {"glue": (*_GLUE, _WNLI) if split == "test" else _GLUE, "super_glue": _SUPER_GLUE}
    return {
        name: float(np.mean([np.mean([scores[metric] for metric in task]) for task in tasks]))
        for name, tasks in benchmarks.items()
        if all(metric in scores for task in tasks for metric in task)
    }


def missing_tasks(scores: Scores, split: str = "validation") -> dict[str, list[str]]:
    """List the tasks that benchmarks lack for an average.

    Args:
        scores: Scores by "task/metric".
        split: "validation" or "test", which decides whether WNLI counts.

    Returns:
        Names of missing tasks by benchmark, for benchmarks with scores of some of their tasks.
    """
    benchmarks = {"glue": (*_GLUE, _WNLI) if split == "test" else _GLUE, "super_glue": _SUPER_GLUE}
    missing: dict[str, list[str]] = {}
    for name, tasks in benchmarks.items():
        lacking = [task for task in tasks if not all(metric in scores for metric in task)]
        if lacking and len(lacking) < len(tasks):
            missing[name] = sorted({metric.split("/")[0] for task in lacking for metric in task})
    return missing
