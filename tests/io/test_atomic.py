"""Files and directories appear as a whole, durably, and without a temporary file beside them."""

import ast
import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import t5x_lite
from t5x_lite.io import atomic


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("write", "content", "expected"),
    [
        (atomic.write_bytes, b"\0\1", b"\0\1"),
        (atomic.write_text, "Grüße\n", "Grüße\n".encode()),
        (atomic.write_json, {"a": [1]}, b'{\n  "a": [\n    1\n  ]\n}\n'),
    ],
)
def test_a_file_has_its_content_and_nothing_is_beside_it(write, content, expected, tmp_path):
    for _ in range(2):  # once new, once over the old one
        write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == expected
        assert names(tmp_path) == ["file"]


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic.write_text(tmp_path / "atomic", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_streamed_content_appears_at_the_end(tmp_path):
    with atomic.open_binary(tmp_path / "array.npy") as file:
        np.save(file, np.arange(5))
        file.flush()
        assert not (tmp_path / "array.npy").exists()
    assert np.load(tmp_path / "array.npy").tolist() == [0, 1, 2, 3, 4]
    with atomic.open_text(tmp_path / "lines") as file:
        file.writelines(["ä\n", "b\n"])
        assert not (tmp_path / "lines").exists()
    assert (tmp_path / "lines").read_bytes() == "ä\nb\n".encode()
    assert names(tmp_path) == ["array.npy", "lines"]


@pytest.mark.parametrize("opened", [atomic.open_binary, atomic.open_text])
def test_a_writer_that_fails_leaves_the_old_content_and_no_temporary(opened, tmp_path):
    (tmp_path / "file").write_text("old")

    def write():
        with opened(tmp_path / "file") as file:
            file.write(b"half" if opened is atomic.open_binary else "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_content_and_no_temporary(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.fixture
def flushed(monkeypatch):
    """Record, in order, the inode that each fsync flushes and the inodes renamed."""
    calls, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def record_fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recording(function):
        def record(source, target):
            calls.append(("rename", os.stat(source).st_ino))
            function(source, target)

        return record

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", recording(replace))
    monkeypatch.setattr(os, "rename", recording(rename))
    return calls


def test_the_file_is_flushed_before_its_rename_and_the_directory_after_it(tmp_path, flushed):
    atomic.write_text(tmp_path / "file", "text")
    file, directory = (tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino
    assert flushed == [("fsync", file), ("rename", file), ("fsync", directory)]


def test_all_of_a_directory_is_flushed_before_its_rename_and_the_parent_after_it(tmp_path, flushed):
    with atomic.new_directory(tmp_path / "whole") as directory:
        (directory / "part").mkdir()
        (directory / "part" / "file").write_text("text")
        (directory / "link").symlink_to("nothing")
        assert names(tmp_path) == [directory.name]
    assert names(tmp_path) == ["whole"]
    whole = tmp_path / "whole"
    inodes = [path.stat().st_ino for path in (whole / "part" / "file", whole / "part", whole)]
    rename, parent = ("rename", inodes[-1]), ("fsync", tmp_path.stat().st_ino)
    assert flushed[-2:] == [rename, parent]
    assert sorted(flushed[:-2]) == sorted(("fsync", inode) for inode in inodes)


def test_both_directories_of_a_rename_are_flushed_after_it(tmp_path, flushed):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "file").write_text("text")
    atomic.rename(tmp_path / "old" / "file", tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_text() == "text"
    parents = {("fsync", (tmp_path / name).stat().st_ino) for name in ("old", "new")}
    assert flushed[0][0] == "rename"
    assert set(flushed[1:]) == parents


def test_a_file_system_without_fsync_of_directories_is_used_without(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    atomic.write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_threads_that_write_one_file_never_mix_their_content(tmp_path):
    path = tmp_path / "file.json"

    def write(number):
        atomic.write_json(path, [number] * 1000)
        return json.loads(path.read_text())

    with ThreadPoolExecutor(8) as pool:
        for content in pool.map(write, range(40)):
            assert len(content) == 1000
            assert len(set(content)) == 1
    assert names(tmp_path) == ["file.json"]


def test_two_processes_can_have_one_file_open_at_once_and_the_last_to_close_wins(tmp_path):
    program = """
import sys
import t5x_lite
from t5x_lite.io import atomic
with atomic.open_text(sys.argv[1]) as file:
    file.write(sys.argv[2])
    print("open", flush=True)
    sys.stdin.readline()
"""
    writers = []
    for content in ("first", "second"):
        writers.append(
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "file"), content],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for writer in writers:
        assert writer.stdout.readline() == "open\n"
    assert len(names(tmp_path)) == 2  # a temporary each
    for writer, content in zip(writers, ("first", "second"), strict=True):
        writer.communicate("end\n")
        assert writer.returncode == 0
        assert (tmp_path / "file").read_text() == content
    assert names(tmp_path) == ["file"]


def test_a_directory_that_fails_leaves_nothing(tmp_path):
    def write():
        with atomic.new_directory(tmp_path / "whole") as directory:
            (directory / "file").write_text("text")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path) == []


def test_a_directory_takes_the_place_of_an_empty_one_but_of_no_other(tmp_path):
    (tmp_path / "whole").mkdir()
    with atomic.new_directory(tmp_path / "whole") as directory:
        (directory / "file").write_text("first")
    with (
        pytest.raises(OSError, match="not empty"),
        atomic.new_directory(tmp_path / "whole") as directory,
    ):
        (directory / "file").write_text("second")
    assert (tmp_path / "whole" / "file").read_text() == "first"
    assert names(tmp_path) == ["whole"]


def test_an_object_in_a_bucket_is_written_once_under_its_own_name(bucket):
    path = epath.Path("gs://runs/folder/file")
    atomic.write_json(path, {"a": 1}, indent=None)
    assert path.read_text() == '{"a": 1}\n'
    with atomic.open_binary(path) as file:
        np.save(file, np.arange(3))
        assert path.read_text() == '{"a": 1}\n'
    assert np.load(io.BytesIO(path.read_bytes())).tolist() == [0, 1, 2]
    with atomic.open_text("gs://runs/folder/text") as file:
        file.write("ä")
    assert epath.Path("gs://runs/folder/text").read_text() == "ä"
    assert bucket() == ["folder/file", "folder/text"]
    atomic.rename(path, epath.Path("gs://runs/folder/renamed"))
    assert bucket() == ["folder/renamed", "folder/text"]


def test_a_writer_to_a_bucket_that_fails_leaves_the_old_object(bucket):
    path = epath.Path("gs://runs/file")
    atomic.write_text(path, "old")

    def write():
        with atomic.open_text(path) as file:
            file.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert bucket() == ["file"]


def test_what_a_killed_writer_left_can_be_removed(tmp_path):
    program = """
import os, sys
import t5x_lite
from t5x_lite.io import atomic
with atomic.open_text(sys.argv[1]) as file:
    os._exit(9)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == 9
    for name in ("file", ".hidden", ".another.tmp"):
        (tmp_path / name).write_text("")
    assert len(names(tmp_path)) == 4
    atomic.remove_temporaries(tmp_path)
    assert names(tmp_path) == [".another.tmp", ".hidden", "file"]


# Files that need no atomic writes, and why.
PLAIN_WRITERS = {
    "cli/main.py": "a temporary file of this process",
    "data/sources/embedded_corpus.py": "inside a new directory",
    "data/stream/seqio_pipeline.py": "a temporary directory of this process",
    "debugging/fault_injection/faults.py": "corrupts files on purpose",
    "io/atomic.py": "is the machinery",
    "io/file_lock.py": "a lock's file is empty",
    "io/tensor_files.py": "inside a new directory",
}


def plain_writes(tree):
    """Yield the lines that write or rename a file without `t5x_lite.io.atomic`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        name = ast.unparse(node.func)
        owner, _, method = name.rpartition(".")
        modes = [ast.unparse(argument) for argument in [*node.args, *node.keywords]]
        opens = method == "open" and any(re.search(r"^'[wx][bt+]*'$", mode) for mode in modes)
        writes = method in ("write_text", "write_bytes", "rename", "NamedTemporaryFile", "mkstemp")
        if owner != "atomic" and (opens or writes or name == "os.replace"):
            yield node.lineno


def test_all_files_are_written_atomically():
    package = Path(t5x_lite.__file__).parent
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if list(plain_writes(ast.parse(path.read_text())))
    }
    assert writers == set(PLAIN_WRITERS)
