"""Every family against Hugging Face's PyTorch models, whose numbers lie in references/.

The weights come in as a user's would: through files that transformers itself saved.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_lite.convert.huggingface import FAMILIES, import_checkpoint
from t5x_lite.convert.param_mapping import export_tensors, tensor_mappings
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.training.losses import cross_entropy
from t5x_lite.tree_paths import flatten

REFERENCES = Path(__file__).parent / "references"
ALL = (
    *("t5_1_0", "t5_1_1", "mt5", "umt5", "byt5", "switch"),
    *("bert", "roberta", "gpt2", "llama", "bart"),
)
MODEL_TYPES = {"byt5": "t5", "t5_1_0": "t5", "t5_1_1": "t5", "switch": "switch_transformers"}


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def our_batch(config, expected):
    """An example of a reference under our names; padding is what it says, not what is 0."""
    side = "decoder" if config.decoder_only else "encoder"
    batch = {
        f"{side}_input_tokens": expected["inputs"],
        f"{side}_segment_ids": expected["inputs_real"],
    }
    if "token_types" in expected:
        batch["encoder_token_types"] = expected["token_types"]
    if "targets_in" in expected:
        batch["decoder_input_tokens"] = expected["targets_in"]
        batch["decoder_segment_ids"] = expected["targets_real"]
    return batch


def real_of(expected):
    return expected["targets_real" if "targets_in" in expected else "inputs_real"] > 0


@pytest.fixture(scope="module", params=ALL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def expected(family):
    with np.load(REFERENCES / family / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def imported(family):
    config, params = import_checkpoint(REFERENCES / family)
    return dataclasses.replace(config, dtype="float32", dropout_rate=0.0), params


@pytest.fixture(scope="module")
def predictions(imported, expected):
    config, params = imported
    graphdef, batch = abstract_model(config)[0], our_batch(config, expected)
    return jax.jit(lambda params: bind(graphdef, params)(batch))(params)


def test_logits_of_real_tokens_equal_hugging_faces(predictions, expected):
    real = real_of(expected)
    assert not real.all()
    error = relative_error(np.asarray(predictions.logits)[real], expected["logits"][real])
    assert error < 1e-5


def test_next_sentence_scores_equal_hugging_faces(family, predictions, expected):
    assert (predictions.next_sentence is not None) == (family == "bert")
    if family == "bert":
        assert relative_error(predictions.next_sentence, expected["next_sentence"]) < 1e-5


def test_what_was_imported_is_written_back_to_the_bit(family, imported):
    """Under the same names, and no other; but for what transformers writes and no model reads."""
    from safetensors.numpy import load_file

    config, params = imported
    table = FAMILIES[MODEL_TYPES.get(family, family)].table(config)
    ours = dict(export_tensors(params, tensor_mappings(config, table)))
    theirs = load_file(REFERENCES / family / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1"], scope="module")
def test_loss_and_every_gradient_equal_hugging_faces(family, imported, expected):
    config, params = imported
    graphdef, batch = abstract_model(config)[0], our_batch(config, expected)
    real = expected["targets_real"].astype(np.float32)

    def mean_loss(params):
        sums = cross_entropy(bind(graphdef, params)(batch).logits, expected["labels"], real)
        return sums.loss / sums.weight

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-6)
    ours = dict(export_tensors(gradients, tensor_mappings(config, FAMILIES["t5"].table(config))))
    prefix = "gradients/"
    theirs = {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == len(jax.tree.leaves(flatten(ours)))
    errors = {name: relative_error(ours[name], theirs[name]) for name in ours}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("family", ["switch"], scope="module")
def test_dropped_tokens_equal_hugging_faces(family, imported, expected):
    """Three places an expert in each row, over there and here; padding stands behind the text."""
    config, params = imported
    length = expected["inputs"].shape[1]
    moe = dataclasses.replace(
        config.moe, group_size=length, eval_capacity_factor=1e-6, min_capacity=3
    )
    graphdef = abstract_model(dataclasses.replace(config, moe=moe))[0]
    batch = our_batch(config, expected)
    logits = np.asarray(jax.jit(lambda params: bind(graphdef, params)(batch).logits)(params))
    real = real_of(expected)
    assert relative_error(expected["logits_dropping"][real], expected["logits"][real]) > 0.01
    assert relative_error(logits[real], expected["logits_dropping"][real]) < 1e-5
