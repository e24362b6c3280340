import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox
from t5x_lite.objectives.language_models import LM, FullLM, LMAdaptation
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.t5_study import (
    BertStyle,
    Denoising,
    Deshuffling,
    DropTokens,
    Mass,
    MassStyle,
    PrefixLM,
    ReplaceSpans,
)

CONFIGS = Path(__file__).parents[2] / "gin_configs"
SENTINELS = Sentinels(first=999, count=100)
TEXT = "Thank you for inviting me to your party last week ."
WORDS = {**dict(enumerate(TEXT.split(), start=3)), 999: "X", 998: "Y", 997: "Z"}
OBJECTIVES = [
    SpanCorruption(),
    SpanCorruption(random_roll=True),
    ReplaceSpans(),
    DropTokens(),
    BertStyle(),
    MassStyle(),
    Mass(),
    Deshuffling(),
    PrefixLM(),
    PrefixLM(noise_density=0.25),
    Denoising("regular", "mask_spans", "sentinels"),
    Denoising("iid", "gathered_tokens", "nothing"),
    LM(),
    FullLM(),
    LMAdaptation(),
]
# What is true of the objective's features, for the properties below.
COMPLEMENTARY = (SpanCorruption, ReplaceSpans, DropTokens, PrefixLM, LM, LMAdaptation)
names = [re.sub(r"[(, ]+", "_", repr(each))[:50] for each in OBJECTIVES]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=names)


def make(objective, token_lists, seed=0, sentinels=SENTINELS):
    lengths = np.array(list(map(len, token_lists)), np.int32)
    tokens = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int32)
    for row, token_list in zip(tokens, token_lists, strict=True):
        row[: len(token_list)] = token_list
    keys = philox.example_keys(seed, 0, np.zeros(len(lengths), int), np.arange(len(lengths)))
    return objective(Rows(tokens, lengths), keys, sentinels), objective.lengths(lengths, keys)


def lists(rows):
    return [row[:length].tolist() for row, length in zip(rows.tokens, rows.lengths, strict=True)]


@pytest.fixture
def corrupt_sentence(monkeypatch):
    """A function from an objective and the places of its noise to inputs and targets as words."""

    def corrupt(objective, noise):
        mask = np.isin(np.arange(len(TEXT.split())), list(noise))[None]
        monkeypatch.setattr(type(objective), "_mask", lambda *_: mask)
        made, _ = make(objective, [range(3, 3 + len(TEXT.split()))])
        return [" ".join(WORDS[t] for t in lists(made[name])[0]) for name in ("inputs", "targets")]

    return corrupt


# Raffel et al. 2020, table 3, and what the algorithms give where noise lies at an end.
SPANS, IID = SpanCorruption(), ReplaceSpans()
SENTENCES = [
    (PrefixLM(), range(4, 11), "Thank you for inviting", "me to your party last week ."),
    (MassStyle(), [2, 3, 8], "Thank you X X me to your party X week .", TEXT),
    (Mass(), range(2, 7), "Thank you X X X X X party last week .", "for inviting me to your"),
    (DropTokens(), [2, 3, 8], "Thank you me to your party week .", "for inviting last"),
    (IID, [2, 3, 8], "Thank you X me to your party Y week .", "X for inviting Y last Z"),
    (IID, [2, 3, 10], "Thank you X me to your party last week Y", "X for inviting Y ."),
    (IID, [0, 1, 8], "X for inviting me to your party Y week .", "Thank you X last Y"),
    (
        SPANS,
        [2, 3, 4, 6, 7, 8],
        "Thank you X to Y week .",
        "X for inviting me Y your party last Z",
    ),
    (SPANS, [9, 10], "Thank you for inviting me to your party last X", "X week ."),
    (SPANS, [1, 2], "Thank X inviting me to your party last week .", "X you for Y"),
]


@pytest.mark.parametrize(("objective", "noise", "inputs", "targets"), SENTENCES)
def test_the_papers_sentence_becomes_what_the_paper_shows(
    corrupt_sentence, objective, noise, inputs, targets
):
    assert corrupt_sentence(objective, noise) == [inputs, targets]


def test_bert_style_noise_is_masks_and_now_and_then_a_random_word():
    objective, text = BertStyle(), list(range(3, 500))
    (made, _) = make(objective, [text] * 50)
    assert lists(made["targets"]) == [text] * 50
    inputs = np.array(lists(made["inputs"]))
    changed = inputs != np.array(text)
    assert changed.mean() == pytest.approx(0.15, abs=0.01)
    assert (inputs[changed] == 999).mean() == pytest.approx(0.9, abs=0.02)


def test_deshuffling_asks_for_the_text_of_its_words_in_another_order():
    text = list(range(3, 103))
    made, _ = make(Deshuffling(), [text])
    inputs = lists(made["inputs"])[0]
    assert sorted(inputs) == text
    assert inputs != text
    assert lists(made["targets"]) == [text]


def test_the_default_span_mask_of_eleven_words_is_their_last_two():
    made, _ = make(SpanCorruption(), [range(3, 14)])
    assert lists(made["inputs"]) == [[*range(3, 12), 999]]
    assert lists(made["targets"]) == [[999, 12, 13]]


@st.composite
def texts(draw):
    lengths = draw(st.lists(st.integers(0, 50), min_size=1, max_size=4))
    same = draw(st.booleans())
    token = st.just(7) if same else st.integers(3, 800)
    return [draw(st.lists(token, min_size=n, max_size=n)) for n in lengths]


@every_objective
@settings(max_examples=25)
@given(texts(), st.integers(0, 2**32))
def test_lengths_foretell_what_becomes_of_the_same_pieces(objective, token_lists, seed):
    made, told = make(objective, token_lists, seed)
    for feature in ("inputs", "targets"):
        assert made[feature].lengths.tolist() == told[feature].tolist()
        assert made[feature].tokens.dtype == np.int32
        beyond = np.arange(made[feature].tokens.shape[1]) >= made[feature].lengths[:, None]
        assert not made[feature].tokens[beyond].any()


@every_objective
@settings(max_examples=25)
@given(texts(), st.integers(0, 2**32))
def test_inputs_and_targets_hold_the_original_tokens(objective, token_lists, seed):
    made, _ = make(objective, token_lists, seed)
    for text, inputs, targets in zip(
        token_lists, lists(made["inputs"]), lists(made["targets"]), strict=True
    ):
        if isinstance(objective, COMPLEMENTARY):
            words = [t for t in inputs if t <= 800] + [t for t in targets if t <= 800]
            assert sorted(words) == sorted(text)
        elif isinstance(objective, Mass):
            missing = [was for was, now in zip(text, inputs, strict=True) if now == 999]
            assert targets == missing
        elif objective.targets == "nothing":
            assert targets == text


@pytest.mark.parametrize(
    "objective", [SpanCorruption(), SpanCorruption(random_roll=True), ReplaceSpans()]
)
@settings(max_examples=25)
@given(texts(), st.integers(0, 2**32))
def test_sentinels_pair_up_and_the_text_can_be_put_together_again(objective, token_lists, seed):
    """Each feature numbers its own spans; where text begins with noise, targets are one ahead."""
    made, _ = make(objective, token_lists, seed)
    for text, inputs, targets in zip(
        token_lists, lists(made["inputs"]), lists(made["targets"]), strict=True
    ):
        for feature in (inputs, targets):
            marks = [t for t in feature if t > 800]
            assert marks == list(range(999, 999 - len(marks), -1))
        runs = [_split(inputs), _split(targets)]
        turn = 1 if inputs[:1] == [999] else 0
        rebuilt = []
        while runs[0] or runs[1]:
            if runs[turn]:
                rebuilt += runs[turn].pop(0)
            turn = 1 - turn
        assert rebuilt == text


def _split(tokens):
    """The runs of words between sentinels."""
    runs = [[]]
    for token in tokens:
        if token > 800:
            runs.append([])
        else:
            runs[-1].append(token)
    return [run for run in runs if run]


EXACT = [each for each in OBJECTIVES if not isinstance(each, ReplaceSpans | DropTokens)]
EXACT = [each for each in EXACT if getattr(each, "mask", "") != "regular"]


@pytest.mark.parametrize("objective", EXACT)
@settings(max_examples=25)
@given(st.integers(8, 120), st.integers(8, 200), st.integers(0, 2**32))
def test_nothing_exceeds_lengths_that_were_accepted(objective, inputs_length, targets_length, seed):
    lengths = {"inputs": inputs_length, "targets": targets_length}
    try:
        raw_length = objective.raw_length(lengths)
    except ConfigError:
        assert targets_length <= inputs_length + 2
        return
    pieces = [[5] * length for length in (raw_length, raw_length - 1, 1, 0)]
    made, _ = make(objective, pieces, seed)
    eos = int(objective.eos_after == "chunks")
    for feature, length in lengths.items():
        assert made[feature].lengths.max() + eos <= length
    if isinstance(objective, SpanCorruption):
        most = max(sum(t > 800 for t in tokens) for rows in made.values() for tokens in lists(rows))
        assert most <= objective.sentinels_needed(lengths)


# Facts of the study's configured lengths: 512 inputs, 511 tokens of text.
@pytest.mark.parametrize(
    ("objective", "average", "configured"),
    [
        (ReplaceSpans(noise_density=0.10), 99, 103),
        (ReplaceSpans(noise_density=0.15), 144, 192),
        (ReplaceSpans(noise_density=0.25), 226, 256),
        (ReplaceSpans(noise_density=0.50), 385, 512),
        (DropTokens(), 78, 104),
        (Denoising("regular", "sentinels", "sentinels"), 113, 192),
    ],
)
def test_targets_of_random_length_must_hold_the_average(objective, average, configured):
    assert objective.raw_length({"inputs": 512, "targets": configured}) == 511
    with pytest.raises(ConfigError, match=f"targets of {average} on average") as caught:
        objective.raw_length({"inputs": 512, "targets": average - 1})
    assert caught.value.names == ("TASK_FEATURE_LENGTHS",)
    made, _ = make(objective, [[5] * 511] * 400, sentinels=Sentinels(32_099, 100))
    error = 4 * made["targets"].lengths.std() / 20
    assert made["targets"].lengths.mean() + 1 == pytest.approx(average - 0.5, abs=error + 0.5)
    assert made["inputs"].lengths.max() <= 511


@pytest.mark.parametrize(
    "objective", [BertStyle(), MassStyle(), Deshuffling()], ids=lambda each: type(each).__name__
)
def test_targets_that_are_the_whole_text_must_be_as_long_as_the_inputs(objective):
    assert objective.raw_length({"inputs": 512, "targets": 512}) == 511
    with pytest.raises(ConfigError, match="makes targets of 512"):
        objective.raw_length({"inputs": 512, "targets": 511})


def test_a_language_model_needs_no_inputs():
    assert LM().raw_length({"targets": 512}) == 511
    assert FullLM().raw_length({"targets": 512}) == 512
    assert LMAdaptation().raw_length({"inputs": 512, "targets": 512}) == 512


@pytest.mark.parametrize(
    ("objective", "field", "value"),
    [
        (ReplaceSpans, "noise_density", 0.0),
        (ReplaceSpans, "noise_density", 1.0),
        (PrefixLM, "noise_density", 0.6),
        (Mass, "noise_density", -0.5),
        (Deshuffling, "documents_per_group", 0),
        (LM, "documents_per_group", 0),
        (LMAdaptation, "documents_per_group", 0),
    ],
)
def test_impossible_settings_are_refused_by_name(objective, field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        objective(**{field: value})
    assert caught.value.names == (f"{objective.__name__}.{field}",)


def test_spans_that_may_not_borrow_pieces_need_half_a_piece_of_sentinels():
    lengths = {"inputs": 512, "targets": 512}
    assert ReplaceSpans(noise_density=0.5).sentinels_needed(lengths) == 1
    assert ReplaceSpans(borrow_pieces=False).sentinels_needed(lengths) == 256
    with pytest.raises(ConfigError, match="has 100 sentinels"):
        make(
            ReplaceSpans(noise_density=0.5, borrow_pieces=False),
            [[5] * 511],
        )


def _shipped():
    """Every line of a header with lengths: the file, the binding it holds for, the lengths."""
    line = r"^#   (?:(\w+\.\w+ = \S+): )?TASK_FEATURE_LENGTHS = (\{.*\})$"
    for path in sorted((CONFIGS / "objectives").rglob("*.gin")):
        lines = re.findall(line, path.read_text(), re.MULTILINE)
        assert lines, path
        yield from ((str(path.relative_to(CONFIGS)), *groups) for groups in lines)


@pytest.mark.parametrize(("name", "binding", "lengths"), [*_shipped()])
def test_shipped_objectives_suit_the_lengths_in_their_headers(name, binding, lengths):
    import gin

    from t5x_lite.cli import gin_config

    gin.clear_config()
    try:
        gin_config.parse(
            [name], [f"--gin.{binding.replace(' ', '')}"] * bool(binding), ["", str(CONFIGS)]
        )
        objective = gin.query_parameter("OBJECTIVE/macro.value").scoped_configurable_fn()
    finally:
        gin.clear_config()
    lengths = gin.config.parse_value(lengths)
    assert objective.raw_length(lengths) >= 509
    assert objective.sentinels_needed(lengths) <= 100
    if isinstance(objective, SpanCorruption):
        with pytest.raises(ConfigError, match="too short"):
            objective.raw_length({**lengths, "targets": lengths["targets"] - 1})
