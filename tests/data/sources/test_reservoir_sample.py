"""Samples of corpora: bounded, fair, and the same every time."""

import collections
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.sources.reservoir_sample import reservoir, sample_lines, split_lines
from t5x_lite.errors import ConfigError


@pytest.fixture
def corpus(tmp_path):
    for language in ("en", "de"):
        lines = [json.dumps({"text": f"{language} {number}"}) for number in range(500)]
        (tmp_path / f"{language}.json").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_shares_of_languages_are_kept(corpus):
    shares = {f"{corpus}/en.json": 10, f"{corpus}/de.json": 1}
    lines = sample_lines(shares, max_lines=110)
    counts = collections.Counter(line[:2] for line in lines)
    assert counts == {"en": 100, "de": 10}
    assert len(set(lines)) == 110
    assert lines == sample_lines(shares, max_lines=110)
    assert lines != sample_lines(shares, max_lines=110, seed=1)


def test_a_pattern_without_files_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no file matches"):
        sample_lines({f"{tmp_path}/*.json": 1}, max_lines=5)


def test_every_item_is_as_likely_to_be_kept_as_any_other():
    counts = collections.Counter(
        item for seed in range(3000) for item in reservoir("abcdef", 2, seed=seed)
    )
    # 1,000 of each are expected with a standard deviation of 26
    assert all(abs(counts[item] - 1000) < 130 for item in "abcdef")


@given(st.lists(st.text(), max_size=30), st.integers(1, 40))
def test_few_items_are_all_kept(items, count):
    kept = reservoir(items, count, seed=0)
    assert len(kept) == min(len(items), count)
    if len(items) <= count:
        assert kept == items


@given(st.text(alphabet=" aé中\n", max_size=9000))
def test_no_character_but_space_is_lost_where_long_lines_are_cut(text):
    lines = list(split_lines(text))
    assert all(0 < len(line.encode()) <= 4000 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_long_line_is_cut_between_words():
    assert list(split_lines("word " * 1600)) == ["word " * 799 + "word", "word " * 799 + "word"]
