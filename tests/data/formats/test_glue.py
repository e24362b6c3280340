"""Rows of GLUE and SuperGLUE in, text out, to the letter."""

import functools

import pytest

from t5x_lite.data.formats import glue
from t5x_lite.suites.glue_superglue import GLUE, SUPER_GLUE

TASKS = {task.name: task for task in (*GLUE, *SUPER_GLUE)}
AXB = {
    "sentence1": "The cat sat on the mat.",
    "sentence2": "The cat did not sit on the mat.",
    "label": -1,
    "idx": 0,
}


@pytest.mark.parametrize(
    ("task", "row", "inputs", "targets"),
    [
        (
            "glue_cola_v002",
            {"sentence": "Our friends won't buy this analysis.", "label": 1},
            "cola sentence: Our friends won't buy this analysis.",
            "acceptable",
        ),
        (
            "glue_sst2_v002",
            {"sentence": "hide new secretions from the parental units ", "label": 0},
            "sst2 sentence: hide new secretions from the parental units ",
            "negative",
        ),
        (
            "glue_mrpc_v002",
            {"sentence1": "He said so.", "sentence2": "So he said.", "label": 1},
            "mrpc sentence1: He said so. sentence2: So he said.",
            "equivalent",
        ),
        (
            "glue_qqp_v002",
            {"question1": "Why is it so?", "question2": "Is it?", "label": 0},
            "qqp question1: Why is it so? question2: Is it?",
            "not_duplicate",
        ),
        (
            "glue_mnli_v002",
            {"premise": "It rained.", "hypothesis": "It was wet.", "label": 0},
            "mnli hypothesis: It was wet. premise: It rained.",
            "entailment",
        ),
        (
            "glue_mnli_matched_v002",
            {"premise": "It rained.", "hypothesis": "It was dry.", "label": 2},
            "mnli hypothesis: It was dry. premise: It rained.",
            "contradiction",
        ),
        (
            "glue_mnli_mismatched_v002",
            {"premise": "It rained.", "hypothesis": "Ann ran.", "label": 1},
            "mnli hypothesis: Ann ran. premise: It rained.",
            "neutral",
        ),
        (
            "glue_ax_v002",
            {"premise": "It rained.", "hypothesis": "Ann ran.", "label": -1},
            "mnli hypothesis: Ann ran. premise: It rained.",
            "<unk>",
        ),
        (
            "glue_qnli_v002",
            {"question": "Who ran?", "sentence": "Ann ran.", "label": 0},
            "qnli question: Who ran? sentence: Ann ran.",
            "entailment",
        ),
        (
            "glue_rte_v002",
            {"sentence1": "Ann ran.", "sentence2": "Bob ran.", "label": 1},
            "rte sentence1: Ann ran. sentence2: Bob ran.",
            "not_entailment",
        ),
        (
            "glue_wnli_v002",
            {"sentence1": "It was tasty.", "sentence2": "The worm was tasty.", "label": 1},
            "wnli sentence1: It was tasty. sentence2: The worm was tasty.",
            "entailment",
        ),
        (
            "super_glue_boolq_v102",
            {"question": "is it so", "passage": "It -- It is so.", "label": 1},
            "boolq passage: It -- It is so. question: is it so",
            "True",
        ),
        (
            "super_glue_cb_v102",
            {"premise": "Perhaps it is.", "hypothesis": "It is.", "label": 2},
            "cb hypothesis: It is. premise: Perhaps it is.",
            "neutral",
        ),
        (
            "super_glue_copa_v102",
            {
                "premise": "The sun rose.",
                "choice1": "It was day.",
                "choice2": "It was night.",
                "question": "effect",
                "label": 0,
            },
            "copa choice1: It was day. choice2: It was night. premise: The sun rose. "
            "question: effect",
            "choice1",
        ),
        (
            "super_glue_rte_v102",
            {"premise": "Ann ran.", "hypothesis": "Bob ran.", "label": 1},
            "rte hypothesis: Bob ran. premise: Ann ran.",
            "not_entailment",
        ),
        (
            "super_glue_wic_v102",
            {"sentence1": "Do you board?", "sentence2": "The board met.", "word": "board"}
            | {"start1": 7, "label": 0},
            "wic sentence1: Do you board? sentence2: The board met. word: board",
            "False",
        ),
        (
            "super_glue_axg_v102",
            {"premise": "The nurse met her.", "hypothesis": "They met.", "label": 0},
            "rte hypothesis: They met. premise: The nurse met her.",
            "entailment",
        ),
        (
            "super_glue_axb_v102",
            AXB,
            "rte hypothesis: The cat did not sit on the mat. premise: The cat sat on the mat.",
            "<unk>",
        ),
    ],
)
def test_fields_follow_their_names_and_labels_are_text(task, row, inputs, targets):
    made = TASKS[task].make({"idx": 7} | row)
    assert made == [{"inputs": inputs, "targets": targets, "idx": row.get("idx", 7)}]


@pytest.mark.parametrize(
    ("score", "text"),
    [
        *((0.0, "0.0"), (3.25, "3.2"), (3.3, "3.2"), (2.7, "2.8"), (4.9, "4.8"), (5.0, "5.0")),
        *((0.1, "0.0"), (0.3, "0.4"), (1.5, "1.6"), (-1.0, "-1.0")),
    ],
)
def test_similarity_is_rounded_to_a_fifth(score, text):
    row = {"sentence1": "Ann ran.", "sentence2": "Bob ran.", "label": score, "idx": 0}
    inputs = "stsb sentence1: Ann ran. sentence2: Bob ran."
    assert glue.similarity(row) == [{"inputs": inputs, "targets": text, "idx": 0}]


def test_similarity_has_26_classes():
    row = {"sentence1": "", "sentence2": "", "idx": 0}
    scores = [number / 1000 for number in range(5001)]
    texts = {glue.similarity(row | {"label": score})[0]["targets"] for score in scores}
    assert texts == {f"{number / 5:.1f}" for number in range(26)}


def test_multirc_loses_its_markup_and_keeps_its_place():
    row = {
        "paragraph": "<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>Bob sat.<br>",
        "question": "Who ran?",
        "answer": "Ann",
        "label": 1,
        "idx/paragraph": 1,
        "idx/question": 2,
        "idx/answer": 3,
    }
    [made] = glue.multirc(row)
    assert made == {
        "inputs": "multirc question: Who ran? answer: Ann paragraph: Sent 1: Ann ran. "
        "Sent 2: Bob sat. ",
        "targets": "True",
        "idx/paragraph": 1,
        "idx/question": 2,
        "idx/answer": 3,
    }
    assert glue.multirc(row | {"label": -1})[0]["targets"] == "<unk>"


def test_record_makes_an_example_of_each_answer():
    row = {
        "passage": 'Ann ran. "It is so"\n@highlight\nBob sat\n@highlight\nAnn won.',
        "query": "@placeholder ran.",
        "entities": ["Ann", "Bob"],
        "answers": ["Ann", "Bob"],
        "idx/passage": 1,
        "idx/query": 2,
    }
    inputs = (
        "record query: @placeholder ran. entities: Ann, Bob passage: "
        'Ann ran. "It is so" Bob sat. Ann won.'
    )
    common = {"inputs": inputs, "answers": ["Ann", "Bob"], "idx/passage": 1, "idx/query": 2}
    assert glue.record(row) == [common | {"targets": "Ann"}, common | {"targets": "Bob"}]
    assert glue.record(row | {"answers": []}) == [common | {"answers": [], "targets": "<unk>"}]


def test_the_formats_read_only_the_fields_they_declare():
    task = TASKS["super_glue_axb_v102"]
    given = {field: AXB[field] for field in task.fields}
    assert task.make(given) == functools.partial(task.make)(AXB)
