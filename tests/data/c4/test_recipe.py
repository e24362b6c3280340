import pytest

from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message", "name"),
    [
        ({"variant": "de"}, "the variant is 'de'", "C4Recipe.variant"),
        ({"unit": "words"}, "the unit is 'words'", "C4Recipe.unit"),
        ({"bad_words": None}, "en needs bad_words", "C4Recipe.bad_words"),
        ({"variant": "realnewslike"}, "needs news_domains", "C4Recipe.news_domains"),
        ({"variant": "webtextlike"}, "needs web_addresses", "C4Recipe.web_addresses"),
    ],
)
def test_a_variant_without_its_list_is_refused_when_it_is_declared(changes, message, name):
    with pytest.raises(ConfigError, match=message) as caught:
        C4Recipe(**{"bad_words": "bad.txt", **changes})
    assert caught.value.names == (name,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad_words", None, "cannot be read"),
        ("bad_words", "\n \n", "lists no word"),
        ("news_domains", "{", "is not JSON"),
        ("web_addresses", "", "lists no address"),
    ],
)
def test_lists_that_cannot_be_used_are_found_before_any_page_is_read(
    name, content, message, tmp_path
):
    path = tmp_path / "list"
    if content is not None:
        path.write_text(content)
    (tmp_path / "bad.txt").write_text("bad\n")
    variant = {"news_domains": "realnewslike", "web_addresses": "webtextlike"}.get(name, "en")
    lists = {"bad_words": str(tmp_path / "bad.txt"), name: str(path)}
    with pytest.raises(ConfigError, match=message) as caught:
        C4Recipe(variant=variant, **lists).check()
    assert caught.value.names == (f"C4Recipe.{name}",)


def test_a_missing_model_of_sentences_is_named_with_what_fetches_it(monkeypatch, tmp_path):
    import nltk

    from t5x_lite.data.c4 import rules

    rules._punkt.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(tmp_path)])
        with pytest.raises(ConfigError, match=r"python -m nltk\.downloader punkt_tab"):
            C4Recipe(variant="en.noblocklist").check()
    rules._punkt.cache_clear()
