"""Metrics of the study's tasks: functions (targets, predictions) -> scores by name, 0 to 100.

They rest on scikit-learn, SciPy, rouge-score and sacrebleu, which are imported when a metric that
needs them is computed. Definitions are those of Raffel et al. 2020 (T5) and its code.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
# (question, number of a candidate), whether it is right, how many tokens it has. A question is
# anything that tells it from others.
Ranked = tuple[tuple[Any, int], bool, int]


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Compute the share of predictions that equal their targets."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": 100 * float(accuracy_score(targets, predictions))}


def sequence_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Compute the share of texts that equal their targets to the letter."""
    equal = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {"sequence_accuracy": 100 * float(np.mean(equal))}


def matthews(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Compute Matthews' correlation of labels; one that is no label is a class of its own."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_corrcoef": 100 * float(matthews_corrcoef(targets, predictions))}


def f1_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Compute F1 of class 1, where a prediction that is neither 0 nor 1 is the wrong one."""
    from sklearn.metrics import f1_score

    true, predicted = np.asarray(targets), np.asarray(predictions)
    predicted = np.where(np.isin(predicted, (0, 1)), predicted, 1 - true)
    return {"f1": 100 * float(f1_score(true, predicted))}


def mean_multiclass_f1(
    targets: Sequence[int], predictions: Sequence[int], *, num_classes: int
) -> dict[str, float]:
    """Compute the plain mean of the F1 of each class."""
    from sklearn.metrics import fbeta_score

    labels = list(range(num_classes))
    mean: Any = fbeta_score(targets, predictions, beta=1, labels=labels, average="macro")
    return {f"mean_{num_classes}class_f1": 100 * float(mean)}


def pearson(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Compute Pearson's correlation."""
    from scipy.stats import pearsonr

    result: Any = pearsonr(targets, predictions)
    return {"pearson_corrcoef": 100 * float(result.statistic)}


def spearman(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Compute Spearman's correlation of ranks."""
    from scipy.stats import spearmanr

    result: Any = spearmanr(targets, predictions)
    return {"spearman_corrcoef": 100 * float(result.statistic)}


def multirc_f1(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Compute MultiRC's F1a: over all answers, whatever questions they belong to."""
    return f1_with_invalid([t["value"] for t in targets], [p["value"] for p in predictions])


def multirc_exact_match(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Compute the share of questions all of whose answers are judged rightly.

    Only meaningful where all answers of each question are among the examples.
    """
    right: dict[Any, bool] = defaultdict(lambda: True)
    for target, prediction in zip(targets, predictions, strict=True):
        right[target["group"]] &= target["value"] == prediction["value"]
    return {"exact_match": 100 * float(np.mean(list(right.values())))}


def once_per_group(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], *, metric: Metric
) -> dict[str, float]:
    """Compute a metric over the first example of each group; ReCoRD repeats its queries."""
    first: dict[Any, tuple[Any, Any]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        first.setdefault(target["group"], (target["value"], prediction["value"]))
    return metric(*map(list, zip(*first.values(), strict=True)))


def bleu(
    targets: Sequence[str] | Sequence[Sequence[str]],
    predictions: Sequence[str],
    *,
    tokenizer: str = "intl",
) -> dict[str, float]:
    """Compute sacrebleu's corpus BLEU, case-sensitive, exponentially smoothed.

    `targets` are one reference of each prediction, or several sets of references.
    """
    import sacrebleu

    references: Any = [targets] if isinstance(targets[0], str) else targets
    score = sacrebleu.corpus_bleu(
        list(predictions),
        [list(texts) for texts in references],
        smooth_method="exp",
        smooth_value=0.0,
        force=False,
        lowercase=False,
        tokenize=tokenizer,
        use_effective_order=False,
    )
    return {"bleu": score.score}


def rouge(
    targets: Sequence[str],
    predictions: Sequence[str],
    *,
    kinds: Sequence[str] = ("rouge1", "rouge2", "rougeLsum"),
    bootstrap: bool = True,
    use_stemmer: bool = False,
) -> dict[str, float]:
    """Compute ROUGE's F of summaries, in which " . " ends a sentence as a new line does.

    With `bootstrap` the score is the median of means over NumPy's random resamples, as papers have
    it, and differs a little each time; without, the plain mean.
    """
    from rouge_score import rouge_scorer, scoring

    scorer = rouge_scorer.RougeScorer(list(kinds), use_stemmer=use_stemmer)
    scores = [
        scorer.score(target=t.replace(" . ", " .\n"), prediction=p.replace(" . ", " .\n"))
        for t, p in zip(targets, predictions, strict=True)
    ]
    if not bootstrap:
        return {kind: 100 * float(np.mean([s[kind].fmeasure for s in scores])) for kind in kinds}
    aggregator = scoring.BootstrapAggregator()
    for score in scores:
        aggregator.add_scores(score)
    result = aggregator.aggregate()
    return {kind: 100 * float(result[kind].mid.fmeasure) for kind in kinds}


def span_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Compute F1 of named entities, as in "PER: Ada Lovelace $$ LOC: London".

    What is not of the form "KIND: name" is passed over; a name predicted twice must stand twice.
    """
    right = predicted = wanted = 0
    for target, prediction in zip(targets, predictions, strict=True):
        true, found = Counter(_entities(target)), Counter(_entities(prediction))
        right += (true & found).total()
        predicted += found.total()
        wanted += true.total()
    return {"span_f1": 100 * 2 * right / max(predicted + wanted, 1)}


def rank_classification(
    targets: Sequence[Ranked], scores: Sequence[float], *, normalize_by_length: bool = False
) -> dict[str, float]:
    """Compute the share of questions whose right candidate (or one of them) scores highest.

    A score is the log-likelihood of a candidate, which `normalize_by_length` divides by its tokens.
    Of equal scores the first candidate counts.
    """
    best = _most_likely(targets, scores, normalize_by_length)
    return {"accuracy": 100 * float(np.mean([right for _, right in best.values()]))}


def rank_multirc(
    targets: Sequence[Ranked], scores: Sequence[float], *, normalize_by_length: bool = False
) -> dict[str, float]:
    """Compute MultiRC's F1a and exact match where the likelier label of an answer is what is said.

    Candidates are 0 ("False") and 1 ("True"); a place is (paragraph, question, answer).
    """
    truth, said = [], []
    for place, (label, right) in _most_likely(targets, scores, normalize_by_length).items():
        truth.append({"value": label if right else 1 - label, "group": place[:2]})
        said.append({"value": label})
    return multirc_f1(truth, said) | multirc_exact_match(truth, said)


def _most_likely(
    targets: Sequence[Ranked], scores: Sequence[float], normalize_by_length: bool
) -> dict[Any, tuple[int, bool]]:
    """The candidate of each question that scores highest, and whether it is right."""
    best: dict[Any, tuple[float, int, bool]] = {}
    for ((question, candidate), right, length), score in zip(targets, scores, strict=True):
        value = score / length if normalize_by_length else score
        found = (value, -candidate, right)
        best[question] = max(best.get(question, found), found)
    return {question: (-number, right) for question, (_, number, right) in best.items()}


def _entities(text: str) -> list[tuple[str, str]]:
    parts = (part.split(":") for part in text.split(" $$ "))
    return [(part[0].strip(), part[1].strip()) for part in parts if len(part) == 2]
