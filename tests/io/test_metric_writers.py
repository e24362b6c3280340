import json

from t5x_lite.io.metric_writers import METRICS, MetricWriters, read_metrics


def steps(directory):
    return [(record["step"], record["kind"]) for record in read_metrics(directory)]


def test_records_come_back_as_they_were_written(tmp_path):
    with MetricWriters(tmp_path, start_step=0) as writers:
        writers.write(5, "train", {"loss": 0.1 + 0.2, "tokens": 7.0})
        writers.write(5, "validation/a_task", {"loss": 1.5})
    assert list(read_metrics(tmp_path)) == [
        {"step": 5, "kind": "train", "loss": 0.1 + 0.2, "tokens": 7.0},
        {"step": 5, "kind": "validation/a_task", "loss": 1.5},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_run_without_records_has_none(tmp_path):
    assert list(read_metrics(tmp_path)) == []


def test_a_restart_drops_what_came_after_its_checkpoint(tmp_path):
    with MetricWriters(tmp_path, start_step=0) as writers:
        for step in (1, 2, 3, 4):
            writers.write(step, "train", {"loss": float(step)})
    with MetricWriters(tmp_path, start_step=2) as writers:
        writers.write(3, "train", {"loss": 33.0})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 2.0, 33.0]


def test_a_line_that_a_kill_left_half_written_is_passed_over(tmp_path):
    with MetricWriters(tmp_path, start_step=0) as writers:
        writers.write(1, "train", {"loss": 1.0})
    with (tmp_path / METRICS).open("a") as lines:
        lines.write('{"step": 2, "kind": "tra')
    assert steps(tmp_path) == [(1, "train")]
    with MetricWriters(tmp_path, start_step=1) as writers:
        writers.write(2, "train", {"loss": 2.0})
    assert steps(tmp_path) == [(1, "train"), (2, "train")]
    for line in (tmp_path / METRICS).read_text().splitlines():
        json.loads(line)


def test_a_written_line_is_on_disk_before_the_run_ends(tmp_path):
    with MetricWriters(tmp_path, start_step=0) as writers:
        writers.write(1, "train", {"loss": 1.0})
        assert steps(tmp_path) == [(1, "train")]
