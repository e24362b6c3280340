"""Tasks judged by their metrics: every example once, in order, whatever the size of a batch."""

import functools

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.eval_sets import EvaluationSet
from t5x_lite.evaluation.task_eval import AVERAGES, TaskEvalCallback, TaskEvaluation, TaskEvaluator
from t5x_lite.inference.engine import Generated, Inference, Scored
from t5x_lite.metrics import metric_functions, postprocessors
from t5x_lite.metrics.task_metrics import EvalExample, TaskMetrics, metric_kind
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import make_mesh
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

BYTES = ByteVocabulary()


class Parrot:
    """Stands in for a model: says its inputs backwards, finds a target likely by its length."""

    def __init__(self, batch_size):
        self.batch_size, self.given = batch_size, []

    def generate(self, params, batch):
        self.given.append(len(batch["inputs"]))
        texts = [BYTES.decode(row) for row in batch["inputs"].tolist()]
        said = np.zeros((len(texts), 1, 32), np.int32)
        for row, text in zip(said, texts, strict=True):
            tokens = [*BYTES.encode(text[::-1]), 1]
            row[0, : len(tokens)] = tokens
        return Generated(said, -np.array([[len(text)] for text in texts], np.float32))

    def score(self, params, batch):
        lengths = (batch["targets"] > 0).sum(axis=1)
        return Scored(-lengths.astype(np.float32), np.zeros_like(batch["targets"], np.float32))


def case(inputs, target, **example):
    pretokenized = {"inputs_pretokenized": inputs.encode(), "targets_pretokenized": target.encode()}
    ids = [[*BYTES.encode(text), 1] for text in (inputs, target)]
    return EvalExample(*ids, {**pretokenized, **example})


def backwards(count):
    """Cases of which every third is not answered by its inputs backwards."""
    return [case(f"n{i}", f"{i}n"[::1] if i % 3 else "no") for i in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_example_counts_once(count, batch_size):
    seen = []

    def remember(targets, predictions):
        seen.append((list(targets), list(predictions)))
        return metric_functions.sequence_accuracy(targets, predictions)

    cases = backwards(count)
    parrot = Parrot(batch_size)
    how = TaskMetrics(None, (remember,))
    judged = TaskEvaluator(parrot, [EvaluationSet("t", "validation", how, cases)], BYTES).evaluate(
        {}
    )["t"]
    assert sum(parrot.given) == count
    assert max(parrot.given) <= batch_size
    texts = [BYTES.decode(c.inputs)[::-1] for c in cases]
    targets = [BYTES.decode(c.targets) for c in cases]
    assert seen == [(targets, texts)]
    right = np.mean([a == b for a, b in zip(targets, texts, strict=True)])
    assert judged.scores == {"sequence_accuracy": pytest.approx(100 * right)}
    assert [line["text"] for line in judged.lines] == texts
    assert [line["target"] for line in judged.lines] == targets


def test_a_limit_takes_the_first_examples():
    how = TaskMetrics(None, (metric_functions.sequence_accuracy,))
    sets = [EvaluationSet("t", "validation", how, backwards(9))]
    judged = TaskEvaluator(Parrot(4), sets, BYTES, max_examples=6).evaluate({})["t"]
    assert len(judged.lines) == 6
    assert judged.scores["sequence_accuracy"] == pytest.approx(100 * 4 / 6)


def test_labels_are_told_by_the_task_and_what_is_none_is_wrong():
    labels = ("not_entailment", "entailment")
    how = TaskMetrics(
        functools.partial(postprocessors.label, labels=labels),
        (metric_functions.f1_with_invalid, metric_functions.accuracy),
    )
    said = ["entailment", "not_entailment", "entailment", "what?", "entailment"]
    wanted = ["entailment", "entailment", "not_entailment", "entailment", "entailment"]
    cases = [case(text[::-1], target) for text, target in zip(said, wanted, strict=True)]
    found = TaskEvaluator(
        Parrot(2), [EvaluationSet("rte", "validation", how, cases)], BYTES
    ).evaluate({})
    true, predicted = [1, 1, 0, 1, 1], [1, 0, 1, 0, 1]  # an invalid one counts as the other class
    assert found["rte"].scores == {
        "f1": pytest.approx(100 * f1_score(true, predicted)),
        "accuracy": pytest.approx(40.0),
    }
    assert [line["prediction"] for line in found["rte"].lines] == [1, 0, 1, -1, 1]


def test_metrics_see_what_only_the_datasets_example_holds():
    from t5x_lite.metrics import qa

    how = TaskMetrics(postprocessors.answers, (qa.squad,))
    cases = [
        case("Ann"[::-1], "Bob", answers=[b"Bob", b"the Ann"]),
        case("x", "Eve", answers=[b"y"]),
    ]
    found = TaskEvaluator(
        Parrot(4), [EvaluationSet("squad", "validation", how, cases)], BYTES
    ).evaluate({})
    assert found["squad"].scores == {"em": 50.0, "f1": 50.0}


def test_options_are_ranked_by_their_scores():
    """The parrot finds short targets likely, so the shorter option is its choice."""
    how = TaskMetrics(postprocessors.ranked, (metric_functions.rank_classification,))
    options = [("yes", True), ("never", False), ("perhaps", True), ("no", False)]
    cases = [
        case("q", text, idx=np.array([i // 2, i % 2]), is_correct=right, targets=BYTES.encode(text))
        for i, (text, right) in enumerate(options)
    ]
    found = TaskEvaluator(
        Parrot(3), [EvaluationSet("copa", "validation", how, cases)], BYTES
    ).evaluate({})
    assert found["copa"].scores == {"accuracy": 50.0}
    assert [line["score"] for line in found["copa"].lines] == [-4.0, -6.0, -8.0, -3.0]


def test_numbers_are_read_from_text():
    from scipy.stats import pearsonr, spearmanr

    how = TaskMetrics(postprocessors.number, (metric_functions.pearson, metric_functions.spearman))
    said, wanted = ["2.4", "0.0", "five", "4.0"], ["2.6", "0.4", "5.0", "3.2"]
    cases = [case(text[::-1], target) for text, target in zip(said, wanted, strict=True)]
    found = TaskEvaluator(
        Parrot(3), [EvaluationSet("stsb", "validation", how, cases)], BYTES
    ).evaluate({})
    numbers = [2.4, 0.0, -1.0, 4.0], [2.6, 0.4, 5.0, 3.2]
    assert found["stsb"].scores == {
        "pearson_corrcoef": pytest.approx(100 * pearsonr(*numbers).statistic),
        "spearman_corrcoef": pytest.approx(100 * spearmanr(*numbers).statistic),
    }


def test_metrics_may_ask_for_the_scores_of_what_was_said_and_answer_in_seqios_own_kinds():
    """As seqio calls them: (targets, predictions, aux_values), Scalars, texts that are no score."""
    from seqio.metrics import Scalar, Text

    def sure(targets, predictions, aux_values):
        told = [s for t, p, s in zip(targets, predictions, aux_values["scores"], strict=True)]
        return {"mean": Scalar(sum(told) / len(told)), "shown": Text("a page")}

    how = TaskMetrics(None, (sure,))
    cases = [case("ab", "ba"), case("abcd", "x"), case("abc", "cba")]
    found = TaskEvaluator(
        Parrot(2), [EvaluationSet("t", "validation", how, cases)], BYTES
    ).evaluate({})["t"]
    assert found.scores == {"mean": -3.0}
    assert [line["text"] for line in found.lines] == ["ba", "dcba", "cba"]


def test_without_labels_there_are_predictions_and_no_scores():
    how = TaskMetrics(
        functools.partial(postprocessors.label, labels=("no",)), (metric_functions.accuracy,)
    )
    cases = [case("on", "<unk>"), case("ab", "<unk>")]
    found = TaskEvaluator(Parrot(2), [EvaluationSet("t", "test", how, cases)], BYTES).evaluate({})[
        "t"
    ]
    assert found.scores == {}
    assert [line["prediction"] for line in found.lines] == [0, -1]
    labelled = [*cases, case("on", "no")]
    some = TaskEvaluator(Parrot(2), [EvaluationSet("t", "test", how, labelled)], BYTES).evaluate(
        {}
    )["t"]
    assert some.scores == {"accuracy": pytest.approx(100 * 2 / 3)}  # of -1 and -1, too


def test_a_metric_of_another_form_is_named():
    with pytest.raises(ConfigError, match=r"the arguments \(guesses\); expected"):
        metric_kind(lambda guesses: {})


def test_a_run_reports_every_task_and_the_averages_there_are(log_lines):
    from t5x_lite.metrics.published_t5 import PUBLISHED

    scores = PUBLISHED["T5 study baseline"].scores
    names = {name.split("/")[0] for name in scores if not name.endswith("/average")}
    sets = []
    for task in names:
        numbers = {name.split("/")[1]: v for name, v in scores.items() if name.startswith(task)}
        how = TaskMetrics(None, (lambda targets, predictions, numbers=numbers: numbers,))
        sets.append(EvaluationSet(task, "validation", how, backwards(1)))
    told = {}
    observer = TaskEvalCallback(TaskEvaluator(Parrot(1), sets, BYTES))
    state = type("State", (), {"eval_params": {}})()
    observer.on_evaluate(7, state, lambda kind, numbers: told.update({kind: numbers}))
    assert told["metrics/glue_cola_v002"] == {"matthews_corrcoef": 53.84}
    assert told[AVERAGES] == {
        "glue": pytest.approx(83.28, abs=0.005),
        "super_glue": pytest.approx(71.36, abs=0.005),
    }
    assert "metrics of glue_cola_v002 at step 7: matthews_corrcoef 53.84" in log_lines


def test_impossible_limits_are_named():
    with pytest.raises(ConfigError, match=r"max_examples must be .* got -1"):
        TaskEvaluation(max_examples=-1)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_models_own_words_do_not_depend_on_the_batch(decoder_only, random_params):
    layers = dict(num_encoder_layers=0 if decoder_only else 1, num_decoder_layers=1)
    sizes = dict(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16)
    config = TransformerConfig(**sizes, **layers, dtype="float32")
    params = jax.tree.map(np.asarray, random_params(config))
    how = TaskMetrics(
        None, (metric_functions.sequence_accuracy, lambda targets, scores: {"s": sum(scores)})
    )
    sets = [EvaluationSet("t", "validation", how, backwards(5))]
    found = {}
    for data, batch_size in ((1, 2), (2, 8)):
        mesh = make_mesh({"data": data}, jax.devices()[:data])
        inference = Inference(config, Generation(max_length=5), mesh=mesh, batch_size=batch_size)
        found[data] = TaskEvaluator(inference, sets, BYTES).evaluate(params)["t"]
    one, other = found.values()
    assert [line["text"] for line in one.lines] == [line["text"] for line in other.lines]
    assert one.scores == pytest.approx(other.scores, rel=1e-5)
