"""Records that a killed run left: what can be read is read, and damage is reported."""

import pytest
from etils import epath

from t5x_lite.errors import ConfigError
from t5x_lite.io.run_records import drop_steps_after, read_json_lines, write_json_lines

TORN = '{"step": 1}\n{"step": 2}\n{"st'
DAMAGED = '{"step": 1}\n{"st\0\0\n[7]\n{"step": 4}\n'


def test_records_come_back_as_they_were_written(tmp_path):
    records = [{"step": 1, "loss": 0.1 + 0.2, "text": "a\u2028b\x85"}, {"step": 2}]
    write_json_lines(tmp_path / "lines", records)
    assert list(read_json_lines(tmp_path / "lines")) == records
    assert (tmp_path / "lines").read_text().count("\n") == 2
    write_json_lines(tmp_path / "lines", [{"value": {3}}], default=list)
    assert list(read_json_lines(tmp_path / "lines")) == [{"value": [3]}]


def test_a_file_that_does_not_exist_has_no_records(tmp_path):
    assert list(read_json_lines(tmp_path / "none", strict=True)) == []
    drop_steps_after(tmp_path / "none", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_left_out_without_a_warning(tmp_path, caplog):
    (tmp_path / "lines").write_text(TORN)
    assert [r["step"] for r in read_json_lines(tmp_path / "lines")] == [1, 2]
    assert caplog.text == ""


def test_a_last_line_without_its_end_is_a_record_if_it_is_whole(tmp_path):
    (tmp_path / "lines").write_text('{"step": 1}\n{"step": 2}')
    assert [r["step"] for r in read_json_lines(tmp_path / "lines")] == [1, 2]


def test_damaged_lines_are_reported_and_those_after_them_read(tmp_path, caplog):
    (tmp_path / "lines").write_text(DAMAGED)
    assert [r["step"] for r in read_json_lines(tmp_path / "lines")] == [1, 4]
    warnings = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path / 'lines'}, line 2, is damaged" in warnings[0]
    assert "line 3, is damaged: it is no JSON object" in warnings[1]


@pytest.mark.parametrize(("content", "line"), [(DAMAGED, 2), (TORN, 3)])
def test_a_file_that_must_be_whole_is_refused_if_it_is_not(content, line, tmp_path):
    (tmp_path / "lines").write_text(content)
    with pytest.raises(ConfigError, match=rf"lines, line {line}, is damaged"):
        list(read_json_lines(tmp_path / "lines", strict=True))


def test_later_steps_and_a_torn_line_are_dropped_and_the_others_keep_their_bytes(tmp_path):
    path = epath.Path(tmp_path) / "lines.jsonl"
    path.write_text('{"step":  1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_steps_after(path, 2)
    assert path.read_text() == '{"step":  1}\n{"step": 2}\n'


def test_a_whole_last_line_gets_its_end_before_the_next_is_appended(tmp_path):
    (tmp_path / "lines").write_text('{"step": 1}\n{"step": 2}')
    drop_steps_after(tmp_path / "lines", 2)
    assert (tmp_path / "lines").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_with_nothing_to_drop_is_not_written(tmp_path):
    write_json_lines(tmp_path / "lines", [{"step": 1}])
    inode = (tmp_path / "lines").stat().st_ino
    drop_steps_after(tmp_path / "lines", 1)
    assert (tmp_path / "lines").stat().st_ino == inode


def test_records_in_a_bucket_are_read_and_dropped(bucket):
    write_json_lines("gs://runs/lines", [{"step": 1}, {"step": 2}])
    drop_steps_after("gs://runs/lines", 1)
    assert list(read_json_lines("gs://runs/lines")) == [{"step": 1}]
    assert list(read_json_lines("gs://runs/none")) == []
