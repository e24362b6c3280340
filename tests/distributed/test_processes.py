"""Processes: how they find each other, and what they exchange."""

import json
import socket
import subprocess
import sys

import pytest

from t5x_lite.distributed import processes
from t5x_lite.distributed.processes import DistributedConfig
from t5x_lite.errors import ConfigError

THREE = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
# Each of three processes prints what it heard; the last one misses a barrier on purpose.
TALK = """
import json, sys
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError

address, number = sys.argv[1], int(sys.argv[2])
processes.initialize(processes.DistributedConfig(address, 3, number), wait_seconds=60)
heard = {"count": processes.count(), "first": processes.is_first()}
heard["gathered"] = processes.gather({"mine": number})
heard["from the first"] = [processes.broadcast([number, "x"]) for _ in range(3)]
made = []
heard["made"] = processes.first_then_others(lambda: made.append(number) or number)
processes.check_same("nothing", None)
try:
    processes.check_same("their numbers", number)
except ConfigError as error:
    heard["difference"] = error.message
def fail():
    assert processes.is_first()
    raise ConfigError("the first has no data", "MODEL_DIR")
try:
    processes.first_then_others(fail)
except ConfigError as error:
    heard["error"] = [error.message, *error.names]
processes.barrier("together")
if number < 2:
    try:
        processes.barrier("without the last", seconds=0.5)
    except processes.MissingProcessError as error:
        heard["missing"] = [str(error), *error.missing]
processes.barrier("the end")
print(json.dumps(heard), flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_processes_exchange_values_and_name_the_one_that_is_missing():
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TALK, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    heard = [json.loads(out) for out, _ in said]
    host = socket.gethostname()
    for number, each in enumerate(heard):
        assert each["count"] == 3
        assert each["first"] == (number == 0)
        assert each["gathered"] == [{"mine": 0}, {"mine": 1}, {"mine": 2}]
        assert each["from the first"] == [[0, "x"]] * 3
        assert each["made"] == number
        assert each["error"] == ["the first has no data", "MODEL_DIR"]
        assert f"process 0 on {host} has 0, process 1 on {host} has 1" in each["difference"]
    for each in heard[:2]:
        said, *missing = each["missing"]
        assert missing == [2]
        assert f"'without the last' for process 2 on {host}" in said


def test_one_process_agrees_with_itself_at_once():
    processes.initialize(DistributedConfig())
    processes.barrier("nobody")
    processes.check_same("anything", {"a": 1})
    assert processes.gather(3) == [3]
    assert processes.broadcast("x") == "x"
    assert processes.first_then_others(lambda: 5) == 5
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)


def test_flags_win_over_the_environment():
    assert DistributedConfig.find({}, {}) == DistributedConfig()
    assert DistributedConfig.find({}, THREE) == DistributedConfig("a:1", 4, 3)
    assert DistributedConfig.find({"process_id": "0"}, THREE) == DistributedConfig("a:1", 4, 0)
    assert DistributedConfig.find({"num_processes": "1"}, {}) == DistributedConfig(None, 1, None)


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ({"coordinator_address": "a:1"}, {}, "--num_processes and --process_id"),
        ({"process_id": "4"}, THREE, "got 4 of 4"),
        ({"num_processes": "two"}, THREE, r"--num_processes \(JAX_NUM_PROCESSES\) takes a number"),
        ({}, {"JAX_PROCESS_ID": "0"}, "lacking --coordinator_address and --num_processes"),
    ],
)
def test_half_a_configuration_is_refused(flags, environment, said):
    with pytest.raises(ConfigError, match=said):
        DistributedConfig.find(flags, environment)


def test_a_process_that_finds_no_process_0_says_so():
    script = (
        "from t5x_lite.distributed import processes as p\n"
        f"p.initialize(p.DistributedConfig('localhost:{free_port()}', 2, 1), wait_seconds=1)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "process 1 of 2 found no process 0 at localhost" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_NTASKS": "8"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_clusters_of_one_are_left_alone(variables, told):
    assert processes.in_cluster(variables) == told


def test_simulated_devices_are_counted_over_all_processes(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ConfigError, match="8 simulated devices do not divide among 3 processes"):
        processes.simulate_devices(8)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    processes.simulate_devices(8)
