"""Metrics of the T5 paper's tasks: functions (targets, predictions) -> scores by name, 0 to 100.

Definitions are those of Raffel et al. 2020 (T5) and the T5 library (`t5.evaluation.metrics`).
scikit-learn, SciPy, rouge-score and sacrebleu are imported when a metric that uses them is
computed.

The arguments of all metrics are the postprocessed targets and predictions of all examples of a
task, in the same order. Those of rank classification are targets and scores.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
# A target of rank classification: (question, index of the candidate), whether the candidate is
# correct, and its number of tokens. A question is identified by any hashable value.
Ranked = tuple[tuple[Any, int], bool, int]


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Compute the percentage of predictions that equal their targets."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": 100 * float(accuracy_score(targets, predictions))}


def sequence_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Compute the percentage of texts that equal their targets exactly."""
    equal = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {"sequence_accuracy": 100 * float(np.mean(equal))}


def matthews(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Compute the Matthews correlation of labels; an invalid prediction is a class of its own."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_corrcoef": 100 * float(matthews_corrcoef(targets, predictions))}


def f1_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Compute F1 of class 1; a prediction that is neither 0 nor 1 counts as the wrong class."""
    from sklearn.metrics import f1_score

    true, predicted = np.asarray(targets), np.asarray(predictions)
    predicted = np.where(np.isin(predicted, (0, 1)), predicted, 1 - true)
    return {"f1": 100 * float(f1_score(true, predicted))}


def mean_multiclass_f1(
    targets: Sequence[int], predictions: Sequence[int], *, num_classes: int
) -> dict[str, float]:
    """Compute the unweighted mean of the F1 of all classes (macro F1).

    Args:
        targets: Class of each example.
        predictions: Predicted classes.
        num_classes: Number of classes.
    """
    from sklearn.metrics import fbeta_score

    labels = list(range(num_classes))
    mean: Any = fbeta_score(targets, predictions, beta=1, labels=labels, average="macro")
    return {f"mean_{num_classes}class_f1": 100 * float(mean)}


def pearson(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Compute the Pearson correlation."""
    from scipy.stats import pearsonr

    result: Any = pearsonr(targets, predictions)
    return {"pearson_corrcoef": 100 * float(result.statistic)}


def spearman(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Compute the Spearman rank correlation."""
    from scipy.stats import spearmanr

    result: Any = spearmanr(targets, predictions)
    return {"spearman_corrcoef": 100 * float(result.statistic)}


def multirc_f1(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Compute MultiRC's F1a: F1 over all answers, regardless of their question."""
    return f1_with_invalid([t["value"] for t in targets], [p["value"] for p in predictions])


def multirc_exact_match(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Compute MultiRC's exact match: the percentage of questions whose answers are all correct.

    It is meaningful only if the examples include all answers of each question.
    """
    is_correct: dict[Any, bool] = defaultdict(lambda: True)
    for target, prediction in zip(targets, predictions, strict=True):
        is_correct[target["group"]] &= target["value"] == prediction["value"]
    return {"exact_match": 100 * float(np.mean(list(is_correct.values())))}


def once_per_group(
    targets: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], *, metric: Metric
) -> dict[str, float]:
    """Compute a metric over the first example of each group.

    ReCoRD has an example for each correct answer of a query; every query counts once.

    Args:
        targets: "group" and "value" of each target.
        predictions: "value" of each prediction.
        metric: Computed over the values.
    """
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
    """Compute corpus BLEU with sacrebleu, case-sensitive, with exponential smoothing.

    Args:
        targets: A reference for each prediction, or several lists of references.
        predictions: Translations.
        tokenizer: sacrebleu's tokenizer; "intl" as in the T5 library.
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
    """Compute ROUGE F-scores of summaries; " . " separates sentences.

    Args:
        targets: Reference summaries.
        predictions: Summaries.
        kinds: Variants of ROUGE, as rouge-score names them.
        bootstrap: Report the median of bootstrap resamples, as the T5 library does, which depends
            on NumPy's global random state; False reports the mean.
        use_stemmer: Compare stems of words.
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
    """Compute F1 of named entities in texts such as "PER: Ada Lovelace $$ LOC: London".

    Parts that are not of the form "KIND: name" are ignored. Entities are compared as multisets.
    """
    num_correct = num_predicted = num_true = 0
    for target, prediction in zip(targets, predictions, strict=True):
        true, predicted = Counter(_entities(target)), Counter(_entities(prediction))
        num_correct += (true & predicted).total()
        num_predicted += predicted.total()
        num_true += true.total()
    return {"span_f1": 100 * 2 * num_correct / max(num_predicted + num_true, 1)}


def rank_classification(
    targets: Sequence[Ranked], scores: Sequence[float], *, normalize_by_length: bool = False
) -> dict[str, float]:
    """Compute the percentage of questions whose highest-scoring candidate is correct.

    Args:
        targets: Question, candidate, correctness and length of each example.
        scores: Log-likelihood of each candidate. The first of equal scores is the highest.
        normalize_by_length: Divide log-likelihoods by the number of tokens of the candidate.
    """
    best = _most_likely(targets, scores, normalize_by_length)
    return {"accuracy": 100 * float(np.mean([is_correct for _, is_correct in best.values()]))}


def rank_multirc(
    targets: Sequence[Ranked], scores: Sequence[float], *, normalize_by_length: bool = False
) -> dict[str, float]:
    """Compute MultiRC's F1a and exact match; the likelier label of an answer is the prediction.

    Args:
        targets: As for `rank_classification`; the question is (paragraph, question, answer), the
            candidates are 0 ("False") and 1 ("True").
        scores: Log-likelihood of each candidate.
        normalize_by_length: Divide log-likelihoods by the number of tokens of the candidate.
    """
    labels, predictions = [], []
    best = _most_likely(targets, scores, normalize_by_length)
    for (paragraph, question, _), (predicted, is_correct) in best.items():
        label = predicted if is_correct else 1 - predicted
        labels.append({"value": label, "group": (paragraph, question)})
        predictions.append({"value": predicted})
    return multirc_f1(labels, predictions) | multirc_exact_match(labels, predictions)


def _most_likely(
    targets: Sequence[Ranked], scores: Sequence[float], normalize_by_length: bool
) -> dict[Any, tuple[int, bool]]:
    """Return the highest-scoring candidate of each question, and whether it is correct."""
    best: dict[Any, tuple[float, int, bool]] = {}
    for ((question, candidate), is_correct, length), score in zip(targets, scores, strict=True):
        value = score / length if normalize_by_length else score
        entry = (value, -candidate, is_correct)  # of equal values, the first candidate is the max
        best[question] = max(best.get(question, entry), entry)
    return {
        question: (-negative, is_correct) for question, (_, negative, is_correct) in best.items()
    }


def _entities(text: str) -> list[tuple[str, str]]:
    parts = (part.split(":") for part in text.split(" $$ "))
    return [(part[0].strip(), part[1].strip()) for part in parts if len(part) == 2]
