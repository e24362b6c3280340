"""Questions, summaries, translations and mT5's tasks, to the letter."""

import pytest

from t5x_lite.data.formats import multilingual, questions, translate_summarize

SQUAD = {
    "id": "56be",
    "context": 'In the U.S.,\n"Ann-Marie" ran  (twice). She won.',
    "question": "Who ran?",
    "answers/text": ["Ann-Marie", "Ann"],
}
CONTEXT = 'In the U . S . , " Ann - Marie " ran ( twice ) . She won . '


def test_squad_sets_punctuation_apart_everywhere():
    [made] = questions.squad(SQUAD)
    assert made == {
        "inputs": f"question: Who ran ? context: {CONTEXT}",
        "targets": "Ann - Marie",
        "id": "56be",
        "context": CONTEXT,
        "question": "Who ran ? ",
        "answers": ["Ann - Marie", "Ann"],
    }


def test_squad_without_its_context_is_a_trivia_question():
    [made] = questions.squad(SQUAD, closed_book=True)
    assert made["inputs"] == "squad trivia question: Who ran ? "
    assert made["targets"] == "Ann - Marie"


def test_spans_are_places_of_words_in_the_context():
    [made] = questions.squad_span(SQUAD | {"answers/text": ["She"]})
    words = questions.span_words(CONTEXT)
    place = words.index("She")
    assert made["targets"] == f"start: {place} end: {place}"
    [made] = questions.squad_span(SQUAD | {"context": "a b c d", "answers/text": ["b c"]})
    assert made["targets"] == "start: 1 end: 2"


def test_spans_that_are_not_in_the_context_make_no_example():
    assert questions.squad_span(SQUAD | {"answers/text": ["Bob"]}) == []


def test_trivia_makes_an_example_of_each_text_and_answer_in_it():
    row = {
        "question": 'Who wrote "Nana"?',
        "answer/normalized_aliases": ["emile zola", "zola"],
        "entity_pages/wiki_context": ["Emile Zola, a writer."],
        "search_results/search_context": ["Nothing.", "ZOLA!"],
    }
    asked = 'question: Who wrote " Nana " ? context: '
    assert questions.trivia_qa(row) == [
        {"inputs": asked + "Emile Zola , a writer . ", "targets": "emile zola"},
        {"inputs": asked + "Emile Zola , a writer . ", "targets": "zola"},
        {"inputs": asked + "ZOLA ! ", "targets": "zola"},
    ]


@pytest.mark.parametrize(
    ("target", "language"), [("de", "German"), ("fr", "French"), ("ro", "Romanian")]
)
def test_translation_leaves_the_sentences_alone(target, language):
    row = {"en": "That is good, isn't it?", target: "Oui  - ja."}
    [made] = translate_summarize.translation(row, source="en", target=target)
    assert made == {
        "inputs": f"translate English to {language}: That is good, isn't it?",
        "targets": "Oui  - ja.",
    }


def test_summaries_keep_their_lines():
    [made] = translate_summarize.summary(
        {"article": "Ann ran.\nBob sat.", "highlights": "Ann ran .\nBob"}
    )
    assert made == {"inputs": "summarize: Ann ran.\nBob sat.", "targets": "Ann ran .\nBob"}


def test_entailment_asks_for_a_digit():
    row = {"premise": "Il pleut.", "hypothesis": "C'est mouillé.", "label": 0}
    inputs = "xnli: premise: Il pleut. hypothesis: C'est mouillé."
    assert multilingual.entailment(row) == [{"inputs": inputs, "targets": "0"}]


def test_xnli_is_read_in_one_of_its_languages():
    row = {
        "premise/fr": "Il pleut.",
        "hypothesis/language": ["de", "fr"],
        "hypothesis/translation": ["Es ist nass.", "C'est mouillé."],
        "label": 2,
    }
    [made] = multilingual.entailment_in_one(row, language="fr")
    assert made["inputs"] == "xnli: premise: Il pleut. hypothesis: C'est mouillé."
    assert made["targets"] == "2"


def test_paws_asks_whether_the_meaning_is_the_same():
    row = {"sentence1": "Ann met Bob.", "sentence2": "Bob met Ann.", "label": 1}
    inputs = "paws sentence1: Ann met Bob. sentence2: Bob met Ann."
    assert multilingual.paraphrase(row) == [{"inputs": inputs, "targets": "paraphrase"}]
    assert multilingual.paraphrase(row | {"label": 0})[0]["targets"] == "different_meaning"


@pytest.mark.parametrize(
    ("text", "apart"),
    [
        ("François_x 5%", "François_x 5 % "),
        ("这是什么？好。", "这是什么 ？ 好 。 "),  # noqa: RUF001
        ("क्या है।", "क्या है । "),
        ("“a”  b", " “ a ” b"),
    ],
)
def test_punctuation_of_every_script_is_set_apart_and_no_letter_is(text, apart):
    assert multilingual.pad_punctuation(text) == apart


def test_questions_in_other_languages_read_like_squads():
    row = SQUAD | {"question": "¿Quién?", "context": "Ann corrió.", "answers/text": ["Ann."]}
    [made] = multilingual.question(row)
    assert made["inputs"] == "question: ¿ Quién ? context: Ann corrió . "
    assert (made["targets"], made["answers"]) == ("Ann . ", ["Ann . "])


def test_tydi_is_read_in_the_language_its_ids_begin_with():
    row = SQUAD | {"id": "finnish--76330-0"}
    assert multilingual.question_in_one(row, language="english") == []
    assert multilingual.question_in_one(row, language="finnish") == multilingual.question(row)


def test_entities_are_listed_with_their_kinds():
    row = {
        "tokens": ["Ada", "Lovelace", "saw", "London"],
        "spans": ["PER: Ada Lovelace", "LOC: London"],
    }
    assert multilingual.entities(row) == [
        {"inputs": "tag: Ada Lovelace saw London", "targets": "PER: Ada Lovelace $$ LOC: London"}
    ]
