import hypothesis.strategies as st
import pytest
import sentencepiece
from hypothesis import given

from t5x_lite.data.sources import embedded_corpus
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.tokenizers.vocabularies import ByteVocabulary, Vocabulary, train_vocabulary


@pytest.fixture(scope="module")
def texts():
    return list(embedded_corpus.embedded_documents(["optax"]).values())


@pytest.fixture(scope="module")
def model(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "unigram.model"
    train_vocabulary(texts, path, vocab_size=500)
    return str(path)


@pytest.fixture(scope="module")
def vocabulary(model):
    return Vocabulary(model)


@pytest.fixture(scope="module")
def seqios(model):
    seqio = pytest.importorskip("seqio")
    return seqio.SentencePieceVocabulary(model, extra_ids=100)


def test_the_layout_is_t5s(vocabulary, model):
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    assert pieces.get_piece_size() == 500
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    assert vocabulary.size == 600
    assert vocabulary.padded_size == 640
    assert vocabulary.sentinels == Sentinels(first=599, count=100)


def test_training_again_gives_the_same_bytes(texts, vocabulary, tmp_path):
    train_vocabulary(texts, tmp_path / "again.model", vocab_size=500)
    assert Vocabulary(str(tmp_path / "again.model")).fingerprint == vocabulary.fingerprint
    train_vocabulary(texts, tmp_path / "other.model", vocab_size=499)
    assert Vocabulary(str(tmp_path / "other.model")).fingerprint != vocabulary.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"again.model", "other.model"}


@given(st.text(max_size=60) | st.from_regex(r"[a-z ,.<>_0-9]{0,60}"))
def test_ids_are_those_of_seqio(vocabulary, seqios, text):
    assert vocabulary.encode(text) == seqios.encode(text)


@given(st.lists(st.integers(0, 639), max_size=30))
def test_texts_are_those_of_seqio(vocabulary, seqios, ids):
    assert vocabulary.decode(ids) == seqios.decode(ids)


def test_sentinels_are_shown_and_read_by_name(vocabulary):
    ids = [599, *vocabulary.encode("learning rate"), 598]
    assert vocabulary.decode(ids) == "<extra_id_0> learning rate <extra_id_1>"
    assert vocabulary.encode("<extra_id_0>") == [599]


def test_decoding_stops_at_the_first_eos(vocabulary):
    rate, loss = vocabulary.encode("rate"), vocabulary.encode("loss")
    assert vocabulary.decode([*rate, 1, *loss, 1]) == "rate"


def test_sentinels_among_the_models_own_pieces_are_found(vocabulary, model, tmp_path, seqios):
    path = tmp_path / "100extra.model"
    path.write_bytes(seqios.sp_model)
    inside = Vocabulary(str(path), extra_ids=0)
    assert inside.size == 600
    assert inside.sentinels == vocabulary.sentinels
    assert Vocabulary(model, extra_ids=0).sentinels.count == 0


def test_a_corpus_too_small_for_the_size_is_refused(texts, tmp_path):
    with pytest.raises(ConfigError, match="no vocabulary of 90000 pieces") as caught:
        train_vocabulary(texts[:50], tmp_path / "unigram.model", vocab_size=90_000)
    assert caught.value.names == ("EmbeddedCorpus.vocab_size", "vocab.vocab_size")
    assert list(tmp_path.iterdir()) == []


def test_another_layout_is_refused(texts, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "bert"),
        vocab_size=500,
        minloglevel=2,
    )
    with pytest.raises(ConfigError, match=r"pad, eos and unk at \(-1, 2, 0\)") as caught:
        _ = Vocabulary(str(tmp_path / "bert.model")).size
    assert caught.value.names == ("VOCABULARY", "Vocabulary.path")


@pytest.mark.parametrize("use", [lambda v: v.size, lambda v: v.fingerprint])
def test_a_missing_model_is_named(tmp_path, use):
    with pytest.raises(ConfigError, match=r"gone\.model' cannot be read: No such file"):
        use(Vocabulary(str(tmp_path / "gone.model")))


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(ConfigError, match=r"text\.model' is not a SentencePiece model"):
        _ = Vocabulary(str(tmp_path / "text.model")).size


def test_bytes_are_ids_from_3_and_sentinels_descend_from_258():
    vocabulary = ByteVocabulary()
    assert (vocabulary.size, vocabulary.padded_size) == (259, 384)
    assert vocabulary.encode("aé") == [ord("a") + 3, 0xC3 + 3, 0xA9 + 3]
    assert vocabulary.sentinels == Sentinels(258, 11)
    assert ByteVocabulary(extra_ids=125).sentinels == Sentinels(383, 125)
    assert ByteVocabulary(extra_ids=125).fingerprint != vocabulary.fingerprint


def test_bytes_that_are_no_text_are_left_out():
    vocabulary = ByteVocabulary()
    assert vocabulary.decode([0, *vocabulary.encode("aé"), 258, 2, 1, 100]) == "aé"
    assert vocabulary.decode([0xC3 + 3, ord("b") + 3]) == "b"


@given(st.text())
def test_no_text_has_the_bytes_of_the_sentinels(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(text)
    lowest = vocabulary.sentinels.first - vocabulary.sentinels.count + 1
    assert all(token < lowest for token in ids)
    assert vocabulary.decode(ids) == text


def test_bytes_are_those_of_seqio():
    seqio = pytest.importorskip("seqio")
    theirs, ours = seqio.ByteVocabulary(), ByteVocabulary()
    text = "Übung: 这是什么 ok"
    assert list(theirs.encode(text)) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text
    assert theirs.vocab_size == ours.size
