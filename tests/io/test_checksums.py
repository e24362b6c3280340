"""Files that changed since their checksums were written are found."""

import pytest

from t5x_lite.io import checksums


@pytest.fixture
def written(tmp_path):
    (tmp_path / "part" / "deep").mkdir(parents=True)
    (tmp_path / "part" / "deep" / "array").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "empty").write_bytes(b"")
    checksums.write_checksums(tmp_path)
    return tmp_path


def flip_a_bit(directory):
    path = directory / "part" / "deep" / "array"
    content = bytearray(path.read_bytes())
    content[1_200_000] ^= 4
    path.write_bytes(content)


def cut(directory):
    path = directory / "part" / "deep" / "array"
    path.write_bytes(path.read_bytes()[:-1])


def test_unchanged_files_are_intact(written):
    assert checksums.has_checksums(written)
    assert checksums.find_corruption(written) is None


@pytest.mark.parametrize(
    ("corrupt", "description"),
    [
        (flip_a_bit, "part/deep/array is not what was written"),
        (cut, "part/deep/array has 2,303,999 bytes instead of 2,304,000"),
        (lambda d: (d / "empty").unlink(), "empty is missing"),
        (lambda d: (d / checksums.RECORD).write_text("[1"), "checksums.json is not readable"),
        (lambda d: (d / checksums.RECORD).write_text("[1]"), "checksums.json is not readable"),
    ],
)
def test_each_kind_of_corruption_is_described(corrupt, description, written):
    corrupt(written)
    assert description in checksums.find_corruption(written)


def test_without_checksums_nothing_is_reported(tmp_path):
    (tmp_path / "file").write_text("text")
    assert not checksums.has_checksums(tmp_path)
    assert checksums.find_corruption(tmp_path) is None
