import errno

import pytest
from etils import epath

from t5x_lite.io.append_file import AppendFile


def test_what_is_appended_follows_what_was_there(tmp_path):
    path = tmp_path / "lines"
    for text in (b"one\n", b"two\n"):
        appender = AppendFile(path)
        appender.write(text)
        appender.close()
    assert path.read_bytes() == b"one\ntwo\n"


class Disk:
    """Stands for a file on a disk that has room for so many bytes more."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._file.write(content[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 3, 6])
def test_a_full_disk_is_reported_once_and_loses_nothing(tmp_path, room, log_lines):
    appender = AppendFile(tmp_path / "lines")
    appender.write(b"first\n")
    appender._file = disk = Disk(appender._file, room)
    for text in (b"second\n", b"third\n"):
        appender.write(text)
        assert (tmp_path / "lines").read_bytes() == b"first\n"  # never half a line
    assert len(log_lines) == 1
    assert log_lines[0].startswith(f"cannot write {tmp_path / 'lines'} (")
    disk.room = 1000
    appender.write(b"fourth\n")
    appender.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"


def test_in_a_bucket_the_whole_file_is_uploaded_with_what_it_held(bucket):
    for text in (b"one\n", b"two\n"):
        appender = AppendFile("gs://runs/lines")
        appender.write(text)
        appender.close()
    assert epath.Path("gs://runs/lines").read_bytes() == b"one\ntwo\n"
    assert bucket() == ["lines"]


def test_a_bucket_that_fails_is_logged_once_and_loses_nothing(bucket, monkeypatch, log_lines):
    class StoreError(Exception):
        """An error that is no OSError, as those of TensorFlow and gcsfs."""

    def fail(path, content):
        raise StoreError("503")

    appender = AppendFile("gs://runs/lines")
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path("gs://runs/lines")), "write_bytes", fail)
        for text in (b"one\n", b"two\n"):
            appender.write(text)
    assert len(log_lines) == 1
    assert "503" in log_lines[0]
    appender.close()
    assert epath.Path("gs://runs/lines").read_bytes() == b"one\ntwo\n"
