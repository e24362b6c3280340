"""What a launch leaves behind about itself."""

import shlex

import pytest

from t5x_lite.checkpoints.run_directory import versions


@pytest.mark.parametrize("program", ["t5x_lite", "/home/me/t5x_lite/t5x_lite/__main__.py"])
def test_a_launch_notes_its_command_as_it_can_be_typed_again(program, monkeypatch):
    arguments = ["train", "--gin_file=a b.gin", "--gin.MESH={'data': 8}"]
    monkeypatch.setattr("sys.argv", [program, *arguments])
    assert shlex.split(versions()["command"]) == ["t5x_lite", *arguments]
