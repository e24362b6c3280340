"""From decoded text to what a metric compares."""

import functools

import pytest

from t5x_lite.metrics import postprocessors


def test_labels_become_numbers_and_all_else_is_none_of_them():
    labels = ("entailment", "not_entailment")
    found = [postprocessors.label(text, labels=labels) for text in ("not_entailment", "neutral")]
    assert found == [1, -1]


@pytest.mark.parametrize(("text", "number"), [("3.4", 3.4), ("-1", -1.0), ("five", -1.0)])
def test_a_text_that_is_no_number_is_minus_one(text, number):
    assert postprocessors.number(text, example={}, is_target=False) == number


def test_targets_of_questions_are_all_their_answers():
    example = {"answers": [b"Ann", b"Bob"], "context": b"Ann met Bob."}
    assert postprocessors.answers("Ann", example=example, is_target=False) == "Ann"
    assert postprocessors.answers("Ann", example=example, is_target=True) == ["Ann", "Bob"]
    target = postprocessors.span_answers("", example=example, is_target=True)
    assert target == {"answers": ["Ann", "Bob"], "context": "Ann met Bob."}


def test_multirc_and_record_know_what_they_belong_to():
    example = {"idx/question": 3, "idx/passage": 1, "idx/query": 2, "answers": [b"Ann"]}
    assert postprocessors.multirc("True", example=example, is_target=True) == {
        "value": 1,
        "group": 3,
    }
    assert postprocessors.multirc("maybe") == {"value": -1}
    target = postprocessors.record("Ann", example=example, is_target=True)
    assert target == {"value": ["Ann"], "group": (1, 2)}
    assert postprocessors.record("Eve") == {"value": "Eve"}


@pytest.mark.parametrize(
    ("prediction", "found"),
    [
        ("The fuzzy bunny", 1),
        ("bunny", 1),
        ("a big fuzzy bunny", 1),
        ("the rabbit", 0),
        ("the fuzzy bunny's", 0),
        ("the", -1),
        ("", -1),
    ],
)
def test_a_pronouns_noun_is_found_by_its_words(prediction, found):
    example = {"targets_pretokenized": b"the fuzzy bunny", "label": 1}
    assert postprocessors.wsc(prediction, example=example) == found
    assert postprocessors.wsc(prediction, example=example, is_target=True) == 1


def test_sentinels_before_an_answer_do_not_count():
    postprocess = functools.partial(postprocessors.label, labels=("False", "True"))
    found = postprocessors.after_sentinels(
        "<extra_id_0> True", count=1, postprocess=postprocess, example={}, is_target=False
    )
    assert found == 1
    assert postprocessors.after_sentinels("<extra_id_0> Ann", count=1) == "Ann"


def test_ranked_candidates_keep_place_correctness_and_length():
    example = {"idx": [4, 1], "is_correct": True, "targets": [5, 6, 1]}
    assert postprocessors.ranked(-2.5, example=example) == -2.5
    assert postprocessors.ranked(-2.5, example=example, is_target=True) == ((4, 1), True, 3)
    of_multirc = {"idx/paragraph": 2, "idx/question": 5, "idx/answer": 1, "idx/option": 0}
    place = (2, 5, 1), 0
    example = {**of_multirc, "is_correct": 0, "targets": [5, 1]}
    assert postprocessors.ranked(-1.0, example=example, is_target=True) == (place, False, 2)
