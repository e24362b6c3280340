"""Files in and out: to the bit, complete, and refused in words where they are wrong."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5x_lite.convert.huggingface import export_checkpoint, import_checkpoint, resize_vocabulary
from t5x_lite.convert.parity_check import differences
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.tree_paths import flatten

REFERENCES = Path(__file__).resolve().parents[1] / "models" / "references"
FAMILIES = {
    "t5_1_0": "t5",
    "t5_1_1": "t5",
    "mt5": "t5",  # the first family that is this model
    "umt5": "umt5",
    "byt5": "t5",
    "switch": "switch_transformers",
    "bert": "bert",
    "roberta": "roberta",
    "gpt2": "gpt2",
    "llama": "llama",
    "bart": "bart",
}
# What config.json does not hold, or what does not change the model.
NOT_KEPT = ("dtype", "remat", "moe")


@pytest.fixture
def copy_of(tmp_path):
    """A function that copies a reference and gives its directory."""

    def make(family):
        directory = tmp_path / family
        shutil.copytree(REFERENCES / family, directory)
        return directory

    return make


@pytest.fixture
def change(copy_of):
    """A function that copies a reference with other tensors or another config.json."""

    def make(family, edit=lambda tensors: tensors, **fields):
        directory = copy_of(family)
        save_file(edit(load_file(directory / "model.safetensors")), directory / "model.safetensors")
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **fields}))
        return directory

    return make


def assert_same(first, second):
    for path, array in flatten(first).items():
        np.testing.assert_array_equal(array, flatten(second)[path], err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_models_come_back_from_files_to_the_bit_and_as_the_same_configuration(
    family, shipped, plausible_params, tmp_path
):
    config = shipped(f"{family}/tiny")
    params = plausible_params(config)
    model_type = export_checkpoint(tmp_path / "out", config, params)
    assert model_type == FAMILIES[family]
    back, again = import_checkpoint(tmp_path / "out")
    assert_same(params, again)
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(back)
    assert {k for k in ours if ours[k] != theirs[k]} <= {*NOT_KEPT}
    assert not differences(config, back)


def test_shards_and_one_file_hold_the_same(shipped, plausible_params, tmp_path):
    config = shipped("t5_1_1/tiny")
    params = plausible_params(config)
    export_checkpoint(tmp_path / "many", config, params, max_shard_bytes=100_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == 4 * sum(w.size for w in jax.tree.leaves(params))
    assert all((tmp_path / "many" / name).stat().st_mode & 0o444 == 0o444 for name in files)
    assert_same(params, import_checkpoint(tmp_path / "many")[1])


def test_every_wrong_tensor_is_listed_with_its_shapes(change):
    def edit(tensors):
        del tensors["encoder.final_layer_norm.weight"]
        tensors["encoder.block.7.layer.0.layer_norm.weight"] = np.zeros(12, np.float32)
        tensors["shared.weight"] = tensors["shared.weight"][:-1]
        return tensors

    directory = change("t5_1_1", edit)
    with pytest.raises(ConfigError) as error:
        import_checkpoint(directory)
    assert error.value.message == (
        f"the tensors of {directory} do not match its config.json: "
        "missing encoder.final_layer_norm.weight [12]; "
        "unexpected encoder.block.7.layer.0.layer_norm.weight [12]; "
        "shared.weight has shape [59, 12], expected [60, 12]"
    )


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 7, "a\\b"],
)
def test_an_index_that_names_anything_but_files_beside_it_is_refused(copy_of, name):
    directory = copy_of("t5_1_0")
    shutil.copy(directory / "model.safetensors", directory.parent / "outside.safetensors")
    index = {"weight_map": {"shared.weight": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="names "):
        import_checkpoint(directory)


def test_an_index_may_not_reach_outside_by_a_link(copy_of):
    directory = copy_of("t5_1_0")
    shutil.move(directory / "model.safetensors", directory.parent / "outside.safetensors")
    (directory / "linked.safetensors").symlink_to(directory.parent / "outside.safetensors")
    index = {"weight_map": {"shared.weight": "linked.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="leaves the directory"):
        import_checkpoint(directory)


def test_pickled_weights_are_not_read(copy_of):
    directory = copy_of("bert")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no model.safetensors; it holds .*other formats"):
        import_checkpoint(directory)


def test_a_file_that_is_no_safetensors_is_named(copy_of):
    directory = copy_of("bert")
    (directory / "model.safetensors").write_bytes(b"not a tensor in here")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read as safetensors"):
        import_checkpoint(directory)


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("bert", dict(model_type="electra"), "model_type is 'electra'; supported: t5, mt5, "),
        ("bert", dict(hidden_size=None), "config.json has no hidden_size"),
        ("bert", dict(hidden_act="mish"), "config.json has the activation 'mish'; supported: "),
        ("bert", dict(position_embedding_type="relative_key"), "only 'absolute' is supported"),
        ("bart", dict(scale_embedding=True), "config.json has scale_embedding True"),
        ("bart", dict(decoder_ffn_dim=24), "config.json has decoder_ffn_dim 24; only 20"),
        ("gpt2", dict(scale_attn_weights=False), "config.json has scale_attn_weights False"),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="yarn")),
            "only the rope_type 'default' is supported",
        ),
        (
            "t5_1_0",
            dict(feed_forward_proj="gated-mish"),
            "feed_forward_proj 'gated-mish'; supported",
        ),
        ("t5_1_1", dict(scale_decoder_outputs=True), "only tied logits can be scaled"),
        ("switch", dict(num_sparse_encoder_layers=1), "supported are 1 and 2"),
        ("switch", dict(router_bias=True), "config.json has router_bias True; only False"),
    ],
)
def test_settings_we_do_not_have_are_refused_in_words(change, family, fields, said):
    with pytest.raises(ConfigError) as error:
        import_checkpoint(change(family, **fields))
    assert said in error.value.message


def test_tensors_that_are_there_twice_count_once(change):
    def edit(tensors):
        for name in (
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        ):
            tensors[name] = tensors["shared.weight"].copy()
        legacy = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[legacy] = np.zeros((32, 3), np.float32)
        return tensors

    config, params = import_checkpoint(change("t5_1_0", edit))
    plain_config, plain = import_checkpoint(REFERENCES / "t5_1_0")
    assert config == plain_config
    assert_same(plain, params)


def test_a_copy_that_differs_is_refused(change):
    def edit(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
        return tensors

    with pytest.raises(ConfigError, match=r"embed_tokens\.weight differs from shared\.weight"):
        import_checkpoint(change("t5_1_0", edit))


@pytest.mark.parametrize("family", ["t5_1_0", "umt5", "switch"])
def test_whether_logits_are_scaled_follows_from_a_head_of_its_own(change, family):
    """The head decides, where config.json has the flag of transformers 5, which always ties."""
    own = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    with_head = change(
        family,
        lambda tensors: {**tensors, "lm_head.weight": own},
        tie_word_embeddings=False,
        scale_decoder_outputs=False,
    )
    config, params = import_checkpoint(with_head)
    assert not config.logits_via_embedding
    np.testing.assert_array_equal(params["head"]["kernel"], own.T)


def test_tied_logits_are_scaled_as_the_file_says(change):
    assert import_checkpoint(REFERENCES / "t5_1_0")[0].scale_tied_logits
    unscaled = change("t5_1_0", tie_word_embeddings=True, scale_decoder_outputs=False)
    assert not import_checkpoint(unscaled)[0].scale_tied_logits


def test_a_bias_of_logits_that_is_all_zeros_is_none(change):
    def edit(tensors):
        return {**tensors, "final_logits_bias": np.zeros((1, 60), np.float32)}

    assert import_checkpoint(REFERENCES / "bart")[0].head_bias
    assert not import_checkpoint(change("bart", edit))[0].head_bias


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_files_of_a_bare_model_lack_the_prefix(change, family):
    prefix = {"gpt2": "transformer.", "bart": "model."}[family]
    bare = change(family, lambda tensors: {k.removeprefix(prefix): v for k, v in tensors.items()})
    assert_same(import_checkpoint(REFERENCES / family)[1], import_checkpoint(bare)[1])


def test_old_names_of_norms_are_understood(change):
    def edit(tensors):
        old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
        for new, name in old.items():
            tensors = {k.replace(new, name): v for k, v in tensors.items()}
        assert any("gamma" in name for name in tensors)
        return tensors

    bare = change("bert", edit)
    assert_same(import_checkpoint(REFERENCES / "bert")[1], import_checkpoint(bare)[1])


def test_half_precision_becomes_float32(change):
    halves = change("t5_1_0", lambda tensors: {k: v.astype("f2") for k, v in tensors.items()})
    whole = flatten(import_checkpoint(REFERENCES / "t5_1_0")[1])
    for path, leaf in flatten(import_checkpoint(halves)[1]).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, whole[path].astype("f2").astype("f4"))


@pytest.mark.parametrize("rows", [64, 50])
def test_the_vocabulary_is_filled_up_with_zeros_or_cut_off(rows):
    config, params = import_checkpoint(REFERENCES / "t5_1_1", vocab_size=rows)
    _, whole = import_checkpoint(REFERENCES / "t5_1_1")
    assert config.vocab_size == rows
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_model(config)[1])
    assert jax.tree.map(np.shape, params) == shapes
    kept = min(rows, 60)
    table, before = params["token_embedder"]["embedding"], whole["token_embedder"]["embedding"]
    np.testing.assert_array_equal(table[:kept], before[:kept])
    assert not table[kept:].any()
    head, before = params["head"]["kernel"], whole["head"]["kernel"]
    np.testing.assert_array_equal(head[:, :kept], before[:, :kept])
    assert not head[:, kept:].any()


def test_padding_the_vocabulary_and_cutting_it_off_again_changes_nothing():
    config, params = import_checkpoint(REFERENCES / "bert")
    back_config, back = resize_vocabulary(*resize_vocabulary(config, params, 128), 60)
    assert back_config == config
    assert_same(params, back)


def test_an_encoder_alone_has_no_decoder_and_comes_back_as_such(tmp_path):
    config, params = import_checkpoint(REFERENCES / "t5_1_1")
    export_checkpoint(tmp_path / "out", config, params, encoder_only=True)
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {"shared", "encoder"}
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["T5EncoderModel"]
    back, again = import_checkpoint(tmp_path / "out")
    assert back.encoder_only
    assert_same({"encoder": params["encoder"]}, again)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("t5_1_0/tiny", dict(share_stacks=True), "share_stacks would be False instead of True"),
        (
            "t5_1_0/tiny",
            dict(num_encoder_layers=0),
            "no family of transformers can represent this model: as ",
        ),
        ("bart/tiny", dict(norm_position="pre"), "norm_position would be 'post' instead of 'pre'"),
        ("llama/tiny", dict(mlp_activations=("silu",)), "no family of transformers can represent"),
        (
            "switch/tiny",
            dict(mlp_activations=("gelu", "linear")),
            "no family of transformers can represent",
        ),
    ],
)
def test_models_that_transformers_lacks_are_refused_with_what_is_different(
    name, changes, said, shipped, plausible_params, tmp_path
):
    config = shipped(name, **changes)
    with pytest.raises(ConfigError) as error:
        export_checkpoint(tmp_path / "out", config, plausible_params(config))
    assert said in error.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_wanted_family_is_taken_or_refused(shipped, plausible_params, tmp_path):
    config = shipped("t5_1_1/tiny")
    params = plausible_params(config)
    assert export_checkpoint(tmp_path / "mt5", config, params, model_type="mt5") == "mt5"
    fields = json.loads((tmp_path / "mt5" / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == (
        "mt5",
        ["MT5ForConditionalGeneration"],
    )
    with pytest.raises(ConfigError, match="as umt5, positions would be 'relative_per_layer'"):
        export_checkpoint(tmp_path / "umt5", config, params, model_type="umt5")


def test_an_export_that_reads_back_differently_leaves_nothing_behind(
    shipped, plausible_params, tmp_path, monkeypatch
):
    from t5x_lite.convert import huggingface

    config = shipped("gpt2/tiny")
    honest = huggingface.export_tensors

    def corrupted(params, tensors):
        for name, array in honest(params, tensors):
            yield name, array * 1.01 if name.endswith("h.1.mlp.c_fc.weight") else array

    monkeypatch.setattr(huggingface, "export_tensors", corrupted)
    with pytest.raises(
        ConfigError, match="logits of the exported model differ by a relative error"
    ):
        export_checkpoint(tmp_path / "out", config, plausible_params(config))
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_writes_over_what_is_there(shipped, plausible_params, tmp_path):
    config = shipped("gpt2/tiny")
    (tmp_path / "precious").write_text("keep")
    with pytest.raises(ConfigError, match="expected a new or an empty directory"):
        export_checkpoint(tmp_path, config, plausible_params(config))
    assert (tmp_path / "precious").read_text() == "keep"
