"""Metrics against values worked out by hand and against the libraries they are named after."""

import functools
import warnings

import pytest

from t5x_lite.metrics import metric_functions, qa


def test_accuracy_is_the_share_of_equal_labels():
    assert metric_functions.accuracy([0, 1, 2, 1], [0, 1, 1, -1]) == {"accuracy": 50.0}


def test_sequence_accuracy_is_exact():
    assert metric_functions.sequence_accuracy(["a b", "c"], ["a b", "C"]) == {
        "sequence_accuracy": 50.0
    }


def test_matthews_correlation_by_hand():
    # 2 true positives, 1 true negative, 1 false positive, 1 false negative
    score = metric_functions.matthews([1, 1, 0, 0, 1], [1, 1, 0, 1, 0])["matthews_corrcoef"]
    assert score == pytest.approx(100 * (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_f1_takes_an_invalid_prediction_for_the_wrong_one():
    # true positives 1, false positives 1 (the invalid of a 0), false negatives 1 (that of a 1)
    assert metric_functions.f1_with_invalid([1, 1, 0, 0], [1, -1, 0, 7]) == {
        "f1": pytest.approx(50.0)
    }


def test_mean_f1_weighs_classes_equally():
    # class 0: precision 1/2, recall 1; class 1: 1, 1/2; class 2: never predicted, never wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about the class without examples
        scores = metric_functions.mean_multiclass_f1([0, 1, 1], [0, 0, 1], num_classes=3)
    assert scores == {"mean_3class_f1": pytest.approx(100 * (2 / 3 + 2 / 3 + 0) / 3)}


def test_correlations_by_hand():
    assert metric_functions.pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])[
        "pearson_corrcoef"
    ] == pytest.approx(100)
    # ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8)
    assert metric_functions.spearman([1.0, 2.0, 3.0], [0.0, 9.0, 4.0])[
        "spearman_corrcoef"
    ] == pytest.approx(50)


def test_multirc_counts_answers_and_whole_questions():
    targets = [{"group": g, "value": v} for g, v in ((0, 1), (0, 0), (1, 1), (1, 1))]
    predictions = [{"value": v} for v in (1, 0, 1, -1)]
    assert metric_functions.multirc_f1(targets, predictions) == {"f1": pytest.approx(80.0)}
    assert metric_functions.multirc_exact_match(targets, predictions) == {"exact_match": 50.0}


def test_repeated_queries_count_once():
    metric = functools.partial(metric_functions.once_per_group, metric=qa.squad)
    targets = [
        {"group": (0, 0), "value": ["Ann", "Bob"]},
        {"group": (0, 0), "value": ["Ann", "Bob"]},
        {"group": (0, 1), "value": ["Eve"]},
    ]
    assert metric(targets, [{"value": "Bob"}, {"value": "x"}, {"value": "x"}]) == {
        "em": 50.0,
        "f1": 50.0,
    }


def test_bleu_is_sacrebleus_with_the_international_tokenizer():
    import sacrebleu

    targets = ["The cat sat on the mat, didn't it?", "It is 5 o'clock - go home now."]
    predictions = ["The cat sat on the mat, did it?", "It is five o'clock - go home now."]
    reference = sacrebleu.BLEU(tokenize="intl", smooth_method="exp")
    expected = reference.corpus_score(predictions, [targets]).score
    assert metric_functions.bleu(targets, predictions) == {"bleu": pytest.approx(expected)}
    assert 0 < expected < 100
    assert metric_functions.bleu(targets, targets) == {"bleu": pytest.approx(100)}
    assert metric_functions.bleu(targets, [text.lower() for text in targets])["bleu"] < 90
    two = metric_functions.bleu([targets, predictions], predictions)
    assert two == {"bleu": pytest.approx(100)}


def test_rouge_by_hand():
    scores = metric_functions.rouge(
        ["ann ran home . bob sat"], ["bob sat . ann ran"], bootstrap=False
    )
    # words: 4 of 4 and of 5; pairs: "bob sat" and "ann ran", of 3 and of 4; lines: all 4 words
    assert scores["rouge1"] == pytest.approx(100 * 8 / 9)
    assert scores["rouge2"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rougeLsum"] == pytest.approx(100 * 8 / 9)


def test_the_bootstraps_score_is_near_the_mean():
    targets = [f"ann ran {'home ' * n}" for n in range(30)]
    predictions = ["ann ran home"] * 30
    exact = metric_functions.rouge(targets, predictions, bootstrap=False)
    for kind, score in metric_functions.rouge(targets, predictions).items():
        assert score == pytest.approx(exact[kind], abs=3)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("PER: Ada Lovelace $$ LOC: London", 100.0),
        ("LOC: London $$ PER: Ada Lovelace", 100.0),
        ("PER: Ada Lovelace", 100 * 2 / 3),
        ("PER: Ada Lovelace $$ PER: Ada Lovelace $$ LOC: London", 80.0),
        ("PER: Ada $$ ORG: London", 0.0),
        ("nonsense", 0.0),
    ],
)
def test_entities_count_whole_and_as_often_as_they_stand_there(prediction, score):
    scores = metric_functions.span_f1(["PER: Ada Lovelace $$ LOC: London"], [prediction])
    assert scores == {"span_f1": pytest.approx(score)}


def test_the_most_likely_candidate_is_the_prediction():
    targets = [((0, 0), False, 4), ((0, 1), True, 1), ((1, 0), True, 2), ((1, 1), False, 2)]
    scores = [-4.0, -2.0, -1.0, -1.0]
    assert metric_functions.rank_classification(targets, scores) == {"accuracy": 100.0}
    by_length = metric_functions.rank_classification(targets, scores, normalize_by_length=True)
    assert by_length == {"accuracy": 50.0}


def test_multirc_by_rank_is_multirc_of_the_likelier_labels():
    """Two questions: both answers of the first judged rightly, one of the second's wrongly."""
    truth, said = [1, 0, 1, 0], [1, 0, 0, 0]
    targets, scores = [], []
    for i, (right, chosen) in enumerate(zip(truth, said, strict=True)):
        for label in (0, 1):
            targets.append((((7, i // 2, i), label), label == right, 2))
            scores.append(-1.0 if label == chosen else -3.0)
    found = metric_functions.rank_multirc(targets, scores)
    assert found == {"f1": pytest.approx(100 * 2 / 3), "exact_match": 50.0}


@pytest.mark.parametrize(
    ("answers", "prediction", "em", "f1"),
    [
        (["The U.S. Army"], "us army", 100, 100),
        (["Ann", "Ann Lee"], "ann lee jones", 0, 80),
        (["a cat"], "the  Cat!", 100, 100),
        (["one two"], "three", 0, 0),
        ([""], "", 100, 0),
        (["to be to be"], "to to be", 0, 100 * 2 * 3 / 7),
    ],
)
def test_squads_scores_by_hand(answers, prediction, em, f1):
    scores = qa.squad([answers], [prediction])
    assert scores == {"em": em, "f1": pytest.approx(f1)}


def test_trivias_punctuation_parts_words():
    assert qa.normalize_squad("jean-paul\u2019s") == "jeanpaul\u2019s"
    assert qa.normalize_trivia_qa("The jean-paul\u2019s") == "jean paul s"
    assert qa.trivia_qa([["jean paul"]], ["Jean-Paul"]) == {"em": 100.0, "f1": 100.0}


@pytest.mark.parametrize(
    ("language", "text", "normal"),
    [
        ("en", "The  Cat!", "cat"),
        ("de", "Der Hund, die Katze", "hund katze"),
        ("es", "¿La casa?", "casa"),
        ("vi", "của tôi", "tôi"),
        ("hi", "यह है।", "यह है"),
        ("ar", "البيت", "بيت"),
        ("zh", "北京ABC 大学。", "北 京 abc 大 学"),
    ],
)
def test_mlqa_knows_articles_and_words_of_its_languages(language, text, normal):
    assert qa.normalize_mlqa(text, language=language) == normal
    assert qa.mlqa([[text]], [text], language=language) == {"em": 100.0, "f1": 100.0}


def test_spans_are_read_from_the_context_they_count_in():
    from t5x_lite.data.formats.questions import squad_span

    row = {"id": "", "question": "", "context": "In the U.S., Ann (née Lee) ran. She won it."}
    [made] = squad_span(row | {"answers/text": ["Lee"]})
    target = {"answers": ["Lee"], "context": made["context"]}
    assert qa.span_squad([target], [made["targets"]]) == {"em": 100.0, "f1": 100.0}
    for garbage in (
        "",
        "start: 1",
        "start: x end: y",
        "start: 9999 end: 9999",
        "ann ran home fast",
    ):
        assert qa.span_squad([target], [garbage])["em"] == 0.0
