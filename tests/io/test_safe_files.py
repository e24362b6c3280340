"""Hostile files: refused, with nothing read or written outside their directory."""

import json

import numpy as np
import pytest

from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.errors import ConfigError
from t5x_lite.io import checksums
from t5x_lite.io.safe_files import inside, read_json
from t5x_lite.io.tensor_files import TensorFiles

OUTSIDE = ["../secret", "/etc/passwd", "a/../../secret", "", ".\0", "..\\secret", 7, None, "link"]


@pytest.fixture
def place(tmp_path):
    """A directory with a secret beside it, and a link to that."""
    (tmp_path / "secret").write_text("secret")
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path / "secret")
    return directory


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_no_name_leads_out_of_a_directory(name, place):
    with pytest.raises(ValueError, match=r"is no path inside|leads out of"):
        inside(place, name)


def test_names_inside_are_what_they_say(place):
    (place / "here").symlink_to(place / "there")
    for name in ("file", "folder/file", "here"):
        assert inside(place, name) == place / name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested more than 64 levels"),
        ("[" * 100 + "]" * 100, "nested more than 64 levels"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested more than 64 levels"),
        (" " * 2000, "it has 2,000 bytes, more than 1,000"),
        ("not json", "Expecting value"),
    ],
    ids=["unclosed", "lists", "dicts", "long", "text"],
)
def test_json_that_would_take_too_much_is_refused(content, said, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_json(path, max_bytes=1000 if "bytes" in said else 1 << 20)


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "link"])
def test_a_checkpoint_whose_checksums_lead_elsewhere_is_corrupt(name, place):
    (place / checksums.RECORD).write_text(json.dumps({name: [6, 0]}))
    assert "lead" in (
        checksums.find_corruption(place) or ""
    ) or "no path inside" in checksums.find_corruption(place)


def test_a_checkpoint_with_a_link_out_of_it_is_corrupt_even_without_checksums(place):
    assert checksums.find_corruption(place) == "link is a link that leads elsewhere"


def store(directory, **changes):
    features = {"targets": {"dtype": "<u2"}}
    manifest = {"num_examples": 1, "features": features, **changes}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    np.array([1, 2], "<u2").tofile(directory / "targets.tokens.bin")
    np.save(directory / "targets.offsets.npy", np.array([0, 2]))


@pytest.mark.parametrize(
    "changes",
    [
        dict(features={"../targets": {"dtype": "<u2"}}),
        dict(features={"/etc/targets": {"dtype": "<u2"}}),
        dict(features={"targets": {"dtype": "O"}}),
        dict(features={"targets": {"dtype": "V1000000000"}}),
        dict(features={"targets": 1}),
        dict(features=[]),
        dict(num_examples="many"),
    ],
    ids=repr,
)
def test_a_manifest_that_asks_for_other_files_or_types_is_refused(changes, tmp_path):
    store(tmp_path)
    assert TokenStore.open(tmp_path).num_examples == 1
    store(tmp_path, **changes)
    with pytest.raises(ConfigError, match="is refused: its manifest"):
        TokenStore.open(tmp_path)


def test_a_store_with_a_link_out_of_it_is_refused(place):
    store(place)
    with pytest.raises(ConfigError, match="link is a link to outside the store"):
        TokenStore.open(place)


def test_offsets_with_objects_or_an_absurd_shape_are_refused_unread(tmp_path):
    store(tmp_path)
    np.save(tmp_path / "targets.offsets.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises((ConfigError, ValueError)):
        TokenStore.open(tmp_path)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header = header.ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    (tmp_path / "targets.offsets.npy").write_bytes(content)
    with pytest.raises((ConfigError, ValueError)):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"emb_dim": {}}', "[]", " " * (1 << 21)], ids=lambda c: c[:9]
)
def test_a_model_file_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ConfigError, match="does not describe a model"):
        recorded_model(tmp_path)


def test_a_header_of_safetensors_that_claims_too_much_is_refused(tmp_path):
    for header in (
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b"[" * 1000,
    ):
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            TensorFiles(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".."])
def test_an_index_of_shards_that_leads_elsewhere_is_refused(name, tmp_path):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="expected plain file names"):
        TensorFiles(tmp_path)
