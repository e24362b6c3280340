import fcntl
from concurrent.futures import ThreadPoolExecutor

import pytest

from t5x_lite.io.file_lock import alone


def test_one_at_a_time_and_nothing_is_left_behind(tmp_path):
    lock, inside, most = tmp_path / ".thing.lock", [], []

    def work(number):
        with alone(lock, lambda line: None):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError), alone(tmp_path / ".thing.lock", print):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_done_without(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path / ".thing.lock", print):
        pass
    assert list(tmp_path.iterdir()) == []
