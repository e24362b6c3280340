"""Winograd schemas: whom the pronoun means."""

import pytest

from t5x_lite.data.formats import coreference

PONY = (
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out "
    'quite loud. "Good for him," he said. '
)
PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use it , but really for now, what more "
    "could they wish for?"
)


def wsc_row(text, place, pronoun, *, label=1):
    return {
        "text": text,
        "span1_text": "Tom",
        "span2_text": pronoun,
        "span2_index": place,
        "label": label,
        "idx": 4,
    }


@pytest.mark.parametrize(
    ("text", "place", "pronoun", "inputs"),
    [
        (
            "Mitchell asked Tom if he could lend some money.",
            4,
            "he",
            "wsc: Mitchell asked Tom if *he* could lend some money.",
        ),
        (
            PONY,
            23,
            "him",
            f'wsc: {PONY[: PONY.index("him,")]}*him* ," he said.',
        ),
        (
            PEBBLE,
            29,
            "it",
            f"wsc: {PEBBLE[: PEBBLE.index('it , but')]}*it* , but really for now, what more could "
            "they wish for?",
        ),
    ],
)
def test_the_pronoun_stands_between_asterisks(text, place, pronoun, inputs):
    made = coreference.wsc(wsc_row(text, place, pronoun), right_only=False)
    assert made == [{"inputs": inputs, "targets": "Tom", "label": 1, "idx": 4}]


def test_wrong_candidates_are_not_learned_but_evaluated():
    row = wsc_row("Mitchell asked Tom if he could lend some money.", 4, "he", label=0)
    assert coreference.wsc(row, right_only=True) == []
    [made] = coreference.wsc(row, right_only=False)
    assert (made["targets"], made["label"]) == ("Tom", 0)


@pytest.mark.parametrize("place", [0, 3, 99])
def test_a_pronoun_that_is_not_where_it_should_be_is_an_error(place):
    row = wsc_row("Mitchell asked Tom if he could lend some money.", place, "he")
    with pytest.raises(ValueError, match=f"word {place} of .* is not the pronoun 'he'"):
        coreference.wsc(row, right_only=False)


@pytest.mark.parametrize(
    ("sentence", "pronoun", "marked"),
    [
        (
            "Bob likes him, and he likes him.",
            "him",
            "Bob likes *him*, and he likes him.",
        ),
        ("The bee hit the window because it was open.", "it", "... because *it* was open."),
        ("It rained, so Ann took it.", "it", "It rained, so Ann took *it*."),
    ],
)
def test_the_first_such_pronoun_of_a_sentence_is_marked(sentence, pronoun, marked):
    row = {"sentence": sentence, "pronoun": pronoun, "candidates": ["Ann", "Bob"], "label": 1}
    [made] = coreference.definite_pronoun(row)
    assert made["inputs"].startswith("wsc: ")
    assert made["inputs"].endswith(marked.removeprefix("..."))
    assert made["targets"] == "Bob"


@pytest.mark.parametrize(
    ("premise", "hypothesis", "inputs", "targets"),
    [
        (
            "The fish ate the worm. It was tasty.",
            "The worm was tasty.",
            "wsc: The fish ate the worm. *It* was tasty.",
            "The worm",
        ),
        (
            "I stuck a pin through a carrot. When I pulled the pin out, it had a hole.",
            "The carrot had a hole.",
            "wsc: I stuck a pin through a carrot. When I pulled the pin out, *it* had a hole.",
            "The carrot",
        ),
        (
            "Jane gave Joan candy because she was hungry.",
            "Jane was hungry.",
            "wsc: Jane gave Joan candy because *she* was hungry.",
            "Jane",
        ),
        (
            "Ann met Amy, and her cat ran away.",
            "Amy's cat ran away.",
            "wsc: Ann met Amy, and *her* cat ran away.",
            "Amy",
        ),
    ],
)
def test_wnli_becomes_a_question_of_whom_the_pronoun_means(premise, hypothesis, inputs, targets):
    row = {"sentence1": premise, "sentence2": hypothesis, "label": 1, "idx": 2}
    [made] = coreference.wnli(row)
    assert (made["inputs"], made["targets"], made["label"]) == (inputs, targets, 1)


def test_dprs_options_are_its_candidates():
    row = {"sentence": "The bee hit the window because it was open.", "pronoun": "it"}
    row |= {"candidates": ["The bee", "the window"], "label": 1}
    one, other = coreference.definite_pronoun_options(row)
    assert one["inputs"] == other["inputs"] == coreference.definite_pronoun(row)[0]["inputs"]
    assert [made["targets"] for made in (one, other)] == row["candidates"]
    assert [made["is_correct"] for made in (one, other)] == [0, 1]
    assert [made["idx/option"] for made in (one, other)] == [0, 1]
    assert one["idx/question"] == other["idx/question"]
    another = coreference.definite_pronoun_options(row | {"sentence": "He saw it ."})
    assert another[0]["idx/question"] != one["idx/question"]


@pytest.mark.parametrize(
    ("text", "noun", "places", "inputs"),
    [
        ("Tom asked if he could go.", "Tom", (0, 3), "* Tom * asked if # he # could go."),
        ("As he ran, Al Lee fell.", "Al Lee", (3, 1), "As # he # ran, * Al Lee * fell."),
        ("Tom asked if he could go.", "Tom", (1, 3), "Tom asked if he could go."),
    ],
)
def test_wscs_other_format_marks_noun_and_pronoun(text, noun, places, inputs):
    """Where the noun's place misses, nothing is marked: two marks not there are counted."""
    row = {"text": text, "span1_text": noun, "span2_text": "he", "label": 0, "idx": 3}
    row |= {"span1_index": places[0], "span2_index": places[1]}
    made = coreference.wsc_marked(row)
    assert made == [{"inputs": f"wsc text: {inputs}", "targets": "False", "idx": 3}]
    assert coreference.wsc_marked(row | {"label": -1})[0]["targets"] == "<unk>"
