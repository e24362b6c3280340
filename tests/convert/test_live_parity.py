"""Files there and back with transformers itself, live: `pytest -m parity`, extra [parity]."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.parity,
    # PyTorch and transformers warn of their own future.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
REFERENCES = Path(__file__).resolve().parents[1] / "models" / "references" / "make_references.py"
FAMILIES = (
    *("t5_1_0", "t5_1_1", "mt5", "umt5", "byt5", "switch"),
    *("bert", "roberta", "gpt2", "llama", "bart"),
)


@pytest.fixture(scope="session")
def theirs():
    """The script that makes the references, which knows how to run transformers."""
    specification = importlib.util.spec_from_file_location("make_references", REFERENCES)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def our_predictions(config, params, example):
    import dataclasses

    import jax

    from t5x_lite.models.transformer import abstract_model, bind

    config = dataclasses.replace(config, dtype="float32")
    side = "decoder" if config.decoder_only else "encoder"
    batch = {
        f"{side}_input_tokens": example["inputs"],
        f"{side}_segment_ids": example["inputs_real"],
    }
    if "token_types" in example:
        batch["encoder_token_types"] = example["token_types"]
    if "targets_in" in example:
        batch["decoder_input_tokens"] = example["targets_in"]
        batch["decoder_segment_ids"] = example["targets_real"]
    graphdef = abstract_model(config)[0]
    return jax.jit(lambda params: bind(graphdef, params)(batch))(params)


def check_equal(ours, theirs, example):
    real = example["targets_real" if "targets_in" in example else "inputs_real"] > 0
    pairs = [(np.asarray(ours.logits)[real], theirs["logits"][real])]
    if "next_sentence" in theirs:
        pairs.append((np.asarray(ours.next_sentence), theirs["next_sentence"]))
    for mine, other in pairs:
        assert np.linalg.norm(mine - other) < 1e-4 * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("family", "shard_size"), [*((name, "5GB") for name in FAMILIES), ("t5_1_1", "10KB")]
)
def test_what_transformers_saves_gives_its_logits_here(family, shard_size, theirs, tmp_path):
    from t5x_lite.convert.huggingface import import_checkpoint

    model, example = theirs.make_model(family, seed=11), theirs.make_example(family, seed=12)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").is_file() == (shard_size == "5GB")
    config, params = import_checkpoint(tmp_path)
    check_equal(
        our_predictions(config, params, example), theirs.predict(model, family, example), example
    )


@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1"])
def test_loss_and_every_gradient_are_theirs(family, theirs, tmp_path):
    import dataclasses

    import jax

    from t5x_lite.convert.huggingface import FAMILIES as TABLES
    from t5x_lite.convert.huggingface import import_checkpoint
    from t5x_lite.convert.param_mapping import export_tensors, tensor_mappings
    from t5x_lite.models.transformer import abstract_model, bind
    from t5x_lite.training.losses import cross_entropy

    model, example = theirs.make_model(family, seed=21), theirs.make_example(family, seed=22)
    model.save_pretrained(tmp_path)
    config, params = import_checkpoint(tmp_path)
    config = dataclasses.replace(config, dtype="float32", dropout_rate=0.0)
    graphdef, real = abstract_model(config)[0], example["targets_real"].astype(np.float32)
    batch = {
        "encoder_input_tokens": example["inputs"],
        "encoder_segment_ids": example["inputs_real"],
        "decoder_input_tokens": example["targets_in"],
        "decoder_segment_ids": example["targets_real"],
    }

    def mean_loss(params):
        sums = cross_entropy(bind(graphdef, params)(batch).logits, example["labels"], real)
        return sums.loss / sums.weight

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    expected = theirs.expect(model, family, example)
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-5)
    ours = dict(export_tensors(gradients, tensor_mappings(config, TABLES["t5"].table(config))))
    assert {f"gradients/{name}" for name in ours} <= expected.keys()
    for name, gradient in ours.items():
        reference = expected[f"gradients/{name}"]
        assert np.linalg.norm(gradient - reference) < 1e-4 * np.linalg.norm(reference), name


@pytest.mark.parametrize(
    ("family", "shard_bytes"), [*((name, 5 * 10**9) for name in FAMILIES), ("switch", 10_000)]
)
def test_what_is_exported_gives_its_logits_there(
    family, shard_bytes, theirs, tmp_path, plausible_params
):
    """Nothing is missing over there, nothing surplus, and all numbers mean the same."""
    import transformers

    from t5x_lite.convert.huggingface import export_checkpoint, import_checkpoint

    pattern = theirs.make_model(family, seed=1)
    pattern.save_pretrained(tmp_path / "pattern")
    config, _ = import_checkpoint(tmp_path / "pattern")
    params = plausible_params(config, seed=3)
    model_type = pattern.config.model_type
    assert model_type == export_checkpoint(
        tmp_path / "ours", config, params, model_type=model_type, max_shard_bytes=shard_bytes
    )
    model_class = getattr(transformers, theirs.MODELS[family][0])
    model, report = model_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    example = theirs.make_example(family, seed=13)
    check_equal(
        our_predictions(config, params, example),
        theirs.predict(theirs.as_published(model.eval(), family), family, example),
        example,
    )


@pytest.mark.parametrize("family", ["t5_1_0", "t5_1_1", "umt5"])
def test_an_encoder_alone_gives_its_states_there(family, theirs, tmp_path, plausible_params):
    import dataclasses

    import jax
    import torch
    import transformers

    from t5x_lite.convert.huggingface import export_checkpoint, import_checkpoint
    from t5x_lite.models.transformer import TokenSequence, abstract_model, bind

    theirs.make_model(family).save_pretrained(tmp_path / "pattern")
    config, _ = import_checkpoint(tmp_path / "pattern")
    config = dataclasses.replace(config, dtype="float32")
    params = plausible_params(config, seed=3)
    export_checkpoint(tmp_path / "ours", config, params, encoder_only=True)
    name = "UMT5EncoderModel" if family == "umt5" else "T5EncoderModel"
    model, report = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    example = theirs.make_example(family, seed=13)
    tokens, real = example["inputs"], example["inputs_real"]
    with torch.no_grad():
        states = model.eval()(
            input_ids=torch.tensor(tokens.astype(np.int64)), attention_mask=torch.tensor(real)
        ).last_hidden_state.numpy()
    graphdef = abstract_model(config)[0]
    text = TokenSequence(tokens, real, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape))
    ours = jax.jit(lambda params: bind(graphdef, params).encode(text)[0])(params)
    ours, states = np.asarray(ours)[real > 0], states[real > 0]
    assert np.linalg.norm(ours - states) < 1e-4 * np.linalg.norm(states)
