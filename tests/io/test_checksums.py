"""Files that changed since they were written are found out."""

import pytest

from t5x_lite.io import checksums


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "part" / "deep").mkdir(parents=True)
    (tmp_path / "part" / "deep" / "array").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "empty").write_bytes(b"")
    checksums.seal(tmp_path)
    return tmp_path


def flip_a_bit(directory):
    path = directory / "part" / "deep" / "array"
    content = bytearray(path.read_bytes())
    content[1_200_000] ^= 4
    path.write_bytes(content)


def cut(directory):
    path = directory / "part" / "deep" / "array"
    path.write_bytes(path.read_bytes()[:-1])


def test_what_is_as_it_was_written_is_intact(sealed):
    assert checksums.is_sealed(sealed)
    assert checksums.damage(sealed) is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip_a_bit, "part/deep/array is not what was written"),
        (cut, "part/deep/array has 2,303,999 bytes instead of 2,304,000"),
        (lambda d: (d / "empty").unlink(), "empty is missing"),
        (lambda d: (d / checksums.RECORD).write_text("[1"), "checksums.json is not readable"),
        (lambda d: (d / checksums.RECORD).write_text("[1]"), "checksums.json is not readable"),
    ],
)
def test_any_harm_is_told(harm, said, sealed):
    harm(sealed)
    assert said in checksums.damage(sealed)


def test_without_a_record_nothing_is_claimed(tmp_path):
    (tmp_path / "file").write_text("text")
    assert not checksums.is_sealed(tmp_path)
    assert checksums.damage(tmp_path) is None
