"""Data sets in TFDS's format, written by the tests, and a way to read them through seqio."""

import pytest

TEXT, NUMBER, SCORE = "text", "number", "score"
ROWS = {
    "glue/cola:1.0.0": (
        {"sentence": TEXT, "label": NUMBER, "idx": NUMBER},
        [
            {"sentence": "Our friends won't buy this analysis.", "label": 1, "idx": 0},
            {"sentence": "They drank the pub.", "label": 0, "idx": 1},
        ],
    ),
    "glue/stsb:1.0.0": (
        {"sentence1": TEXT, "sentence2": TEXT, "label": SCORE, "idx": NUMBER},
        [{"sentence1": "Ann ran.", "sentence2": "Bob ran.", "label": 3.25, "idx": 0}],
    ),
    "super_glue/multirc:1.0.2": (
        {"paragraph": TEXT, "question": TEXT, "answer": TEXT, "label": NUMBER}
        | {"idx": {"paragraph": NUMBER, "question": NUMBER, "answer": NUMBER}},
        [
            {
                "paragraph": "<b>Sent 1: </b>Ann ran.<br>",
                "question": "Who ran?",
                "answer": "Ann",
                "label": 1,
                "idx": {"paragraph": 0, "question": 3, "answer": 5},
            }
        ],
    ),
    "super_glue/record:1.0.2": (
        {"passage": TEXT, "query": TEXT, "entities": [TEXT], "answers": [TEXT]}
        | {"idx": {"passage": NUMBER, "query": NUMBER}},
        [
            {
                "passage": "Ann ran.\n@highlight\nBob sat",
                "query": "@placeholder ran.",
                "entities": ["Ann", "Bob"],
                "answers": ["Ann", "Annie"],
                "idx": {"passage": 0, "query": 1},
            },
            {
                "passage": "Eve sat.",
                "query": "@placeholder sat.",
                "entities": ["Eve"],
                "answers": [],
                "idx": {"passage": 1, "query": 2},
            },
        ],
    ),
    "super_glue/wsc.fixed:1.0.2": (
        {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT, "span1_index": NUMBER}
        | {"span2_index": NUMBER, "label": NUMBER, "idx": NUMBER},
        [
            {
                "text": "Mitchell asked Tom if he could lend some money.",
                "span1_text": name,
                "span2_text": "he",
                "span1_index": place,
                "span2_index": 4,
                "label": label,
                "idx": label,
            }
            for name, place, label in (("Mitchell", 0, 0), ("Tom", 2, 1))
        ],
    ),
    "definite_pronoun_resolution:1.1.0": (
        {"sentence": TEXT, "pronoun": TEXT, "candidates": (2, TEXT), "label": NUMBER},
        [
            {
                "sentence": "The bee hit the window because it was open.",
                "pronoun": "it",
                "candidates": ["The bee", "the window"],
                "label": 1,
            }
        ],
    ),
    "squad/v1.1:3.0.0": (
        {"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT}
        | {"answers": [{"text": TEXT, "answer_start": NUMBER}]},
        [
            {
                "id": "56be",
                "title": "Ann",
                "context": "In the U.S., Ann ran.",
                "question": "Who ran?",
                "answers": {"text": ["Ann", "She"], "answer_start": [13, 13]},
            }
        ],
    ),
    "trivia_qa/rc:1.1.0": (
        {"question": TEXT, "question_id": TEXT}
        | {"answer": {"normalized_aliases": [TEXT], "value": TEXT}}
        | {"entity_pages": [{"wiki_context": TEXT, "title": TEXT}]}
        | {"search_results": [{"search_context": TEXT, "rank": NUMBER}]},
        [
            {
                "question": "Who wrote Nana?",
                "question_id": "q1",
                "answer": {"normalized_aliases": ["zola", "emile zola"], "value": "Zola"},
                "entity_pages": {"wiki_context": ["Emile Zola wrote."], "title": ["Zola"]},
                "search_results": {"search_context": ["No one.", "ZOLA!"], "rank": [1, 2]},
            }
        ],
    ),
    "cnn_dailymail:3.4.0": (
        {"article": TEXT, "highlights": TEXT, "id": TEXT},
        [{"article": "Ann ran.", "highlights": "Ann ran .\nBob sat .", "id": "x"}],
    ),
    "wmt16_translate/ro-en:1.0.0": (
        {"en": TEXT, "ro": TEXT},
        [{"en": "That is good.", "ro": "Este bine."}],
    ),
    "xnli:1.1.0": (
        {"hypothesis": {"language": [TEXT], "translation": [TEXT]}}
        | {"premise": {"en": TEXT, "fr": TEXT}, "label": NUMBER},
        [
            {
                "hypothesis": {
                    "language": ["fr", "en"],
                    "translation": ["C'est mouillé.", "It is wet."],
                },
                "premise": {"en": "It rains.", "fr": "Il pleut."},
                "label": 0,
            }
        ],
    ),
    "wikiann/en:1.0.0": (
        {"tokens": [TEXT], "tags": [NUMBER], "langs": [TEXT], "spans": [TEXT]},
        [
            {
                "tokens": ["Ada", "saw", "London"],
                "tags": [1, 0, 5],
                "langs": ["en"] * 3,
                "spans": ["PER: Ada", "LOC: London"],
            }
        ],
    ),
    "c4/en:2.2.0": (
        {"text": TEXT, "url": TEXT},
        [
            {"text": f"Trees grow slowly, {number} of them at least.", "url": ""}
            for number in range(40)
        ],
    ),
}


def _features(spec):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if isinstance(spec, dict):
        return {name: _features(part) for name, part in spec.items()}
    if isinstance(spec, list):
        return tfds.features.Sequence(_features(spec[0]))
    if isinstance(spec, tuple):
        return tfds.features.Sequence(_features(spec[1]), length=spec[0])
    scalars = {NUMBER: tf.int64, SCORE: tf.float32}
    return tfds.features.Text() if spec == TEXT else tfds.features.Scalar(scalars[spec])


@pytest.fixture(scope="session")
def save_untrained(random_params):
    """A function that makes a run directory of a model that reads bytes and was never trained."""
    import jax

    from t5x_lite.checkpoints.checkpointer import Checkpointer, CheckpointPolicy
    from t5x_lite.checkpoints.run_directory import write_launch
    from t5x_lite.import_export.import_hf import Weights
    from t5x_lite.models.config import TransformerConfig

    def save(directory, steps, **sizes):
        sizes = dict(vocab_size=384, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8) | sizes
        config = TransformerConfig(**sizes, num_encoder_layers=1, num_decoder_layers=1)
        params = jax.tree.map(jax.numpy.asarray, random_params(config))
        with Checkpointer(directory, CheckpointPolicy(period=1, keep=None)) as saved:
            for step in steps:
                state = Weights(jax.numpy.int32(step), params)
                saved.save(step, state, {"seconds": 0.0}, force=True)
                saved.wait()
        write_launch(directory, config, start_step=0, describe_config=str)
        return directory

    return save


@pytest.fixture(scope="session")
def saying():
    """A function that makes a stand-in for `Inference.generate`: it says `answer(inputs)`."""
    import numpy as np

    from t5x_lite.inference.engine import Generated
    from t5x_lite.tokenizers.vocabularies import ByteVocabulary

    def make(answer):
        pieces = ByteVocabulary()

        def say(inference, params, batch):
            said = np.zeros((len(batch["inputs"]), 1, 16), np.int32)
            for row, tokens in zip(said, batch["inputs"].tolist(), strict=True):
                ids = [*pieces.encode(answer(pieces.decode(tokens))), 1]
                row[0, : len(ids)] = ids
            return Generated(said, np.zeros((len(said), 1), np.float32))

        return say

    return make


@pytest.fixture(scope="session")
def write_data_sets():
    """A function that prepares data sets as TFDS does: (directory, {name: (spec, rows)}).

    The rows are those of every split, or of each by its name.
    """
    tfds = pytest.importorskip("tensorflow_datasets")

    def write(directory, data_sets):
        for name, (spec, rows) in data_sets.items():
            path, version = name.split(":")
            dataset, _, config = path.partition("/")
            if not isinstance(rows, dict):
                rows = dict.fromkeys(("train", "validation", "test"), rows)
            splits = {
                split: [(str(number), row) for number, row in enumerate(of_split)]
                for split, of_split in rows.items()
            }
            builder = _builder(tfds, dataset, config, version, _features(spec), splits)
            builder(data_dir=str(directory)).download_and_prepare()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
        yield write


@pytest.fixture(scope="session")
def tfds_data_dir(tmp_path_factory, write_data_sets):
    """A directory with small data sets as TFDS prepares them; train, validation and test alike."""
    directory = tmp_path_factory.mktemp("tfds")
    write_data_sets(directory, ROWS)
    return str(directory)


def _builder(tfds, dataset, config, version, features, splits):
    """Return the class of a builder under a data set's own name."""

    class GeneratedTokens(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: iter(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    return GeneratedTokens
