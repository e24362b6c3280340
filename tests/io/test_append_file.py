import errno

import pytest
from etils import epath

from t5x_lite.io.append_file import AppendFile
from t5x_lite.io.metric_writers import drop_after, read_lines


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
def test_a_full_disk_is_reported_once_and_loses_nothing(tmp_path, room):
    said = []
    appender = AppendFile(tmp_path / "lines", said.append)
    appender.write(b"first\n")
    appender._file = disk = Disk(appender._file, room)
    for text in (b"second\n", b"third\n"):
        appender.write(text)
        assert (tmp_path / "lines").read_bytes() == b"first\n"  # never half a line
    assert len(said) == 1
    assert "could not be WRITTEN" in said[0]
    disk.room = 1000
    appender.write(b"fourth\n")
    appender.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"


def test_in_a_store_the_file_is_written_anew_with_what_it_held(tmp_path, monkeypatch):
    """`memory://` cannot be had offline through etils: a local path stands for the store."""
    files = {}

    class Stored:
        def __init__(self, path):
            self.path = str(path)

        def exists(self):
            return self.path in files

        def read_bytes(self):
            return files[self.path]

        def write_bytes(self, content):
            files[self.path] = content

    monkeypatch.setattr("t5x_lite.io.append_file.epath.Path", Stored)
    for text in (b"one\n", b"two\n"):
        appender = AppendFile("gs://bucket/lines")
        appender.write(text)
        appender.close()
    assert files == {"gs://bucket/lines": b"one\ntwo\n"}


def test_later_steps_and_a_line_that_is_cut_off_are_dropped(tmp_path):
    path = epath.Path(tmp_path) / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_after(path, 2)
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    assert path.read_text().endswith("}\n")
    drop_after(path.parent / "none", 2)
