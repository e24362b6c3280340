"""What a column of a comparison says of a run: the best of its checkpoints."""

from t5x_lite.evaluation.averages import benchmark_averages
from t5x_lite.run.evaluation_report import LOSS, Figures, best_of_each_task


def column_score(figures: Figures, name: str) -> float | None:
    """The best value of "task/metric", a loss at its lowest; None where there is none.

    The best checkpoint of a task is that with the highest mean of its metrics, as in the T5 study;
    "glue/average" and "super_glue/average" average the best of every task.
    """
    if name.endswith(f"/{LOSS}"):
        found = [scores[name] for scores in figures.values() if name in scores]
        return min(found) if found else None
    best: dict[str, float] = {}
    for _, scores in best_of_each_task(figures).values():
        best |= scores
    averages = {f"{name}/average": value for name, value in benchmark_averages(best).items()}
    return (best | averages).get(name)
