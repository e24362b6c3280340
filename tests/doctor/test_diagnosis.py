"""What the doctor makes of what hosts say: the odd one is named, and there is a cure."""

import pytest

from t5x_lite.doctor.diagnosis import Requirements, collective, diagnose

NAMES = [f"process {number} on host-{number}" for number in range(4)]
REQUIREMENTS = Requirements(devices=16, disk={"MODEL_DIR": 10**9}, memory=10**9)


def hosts(number=2, **odd):
    """Four healthy hosts, one of them with these facts instead."""
    healthy = dict(
        revision="abc",
        versions={"jax": "0.10.2", "flax": "0.12.8"},
        config="1234",
        device_kind="TPU v5e",
        devices=4,
        clock=1000.0,
        storage="",
        memory=10**11,
        disk={"MODEL_DIR": 10**12},
        data=[],
        stores=True,
    )
    return [{**healthy, **(odd if each == number else {})} for each in range(4)]


def test_healthy_hosts_are_found_so():
    findings = diagnose(hosts(), NAMES, REQUIREMENTS)
    assert not any(finding.wrong for finding in findings)
    seen = {finding.what: finding.seen for finding in findings}
    assert seen["git revision"] == "abc"
    assert seen["devices"] == "16, 4 on each host"


@pytest.mark.parametrize(
    ("odd", "what", "seen"),
    [
        ({"revision": "def"}, "git revision", "def instead of abc"),
        (
            {"versions": {"jax": "0.9.0", "flax": "0.12.8"}},
            "package versions",
            "jax 0.9.0 instead of 0.10.2",
        ),
        ({"config": "9"}, "configuration", "9 instead of 1234"),
        ({"device_kind": "cpu"}, "kind of device", "cpu instead of TPU v5e"),
        ({"devices": 3}, "devices", "15 instead of 16: process 2 on host-2 sees 3, others 4"),
        ({"clock": 1060.0}, "clocks", "+60 s off"),
        ({"storage": "cannot write: Permission denied"}, "model directory", "Permission denied"),
        ({"data": ["no such vocabulary"]}, "data and vocabulary", "no such vocabulary"),
        ({"disk": {"MODEL_DIR": 10**8}}, "disk at MODEL_DIR", "0.10 GB free"),
        ({"memory": 10**8}, "memory of a host", "0.10 GB free"),
    ],
)
def test_what_is_wrong_on_one_host_is_named_with_the_host_and_a_cure(odd, what, seen):
    [wrong] = [each for each in diagnose(hosts(**odd), NAMES, REQUIREMENTS) if each.wrong]
    assert wrong.what == what
    assert seen in wrong.seen
    assert "process 2 on host-2" in wrong.seen
    assert len(wrong.cure) > 20


def test_whole_hosts_that_are_missing_show_in_the_devices():
    [wrong] = [each for each in diagnose(hosts()[:3], NAMES[:3], REQUIREMENTS) if each.wrong]
    assert wrong.seen == "12 instead of 16: 3 hosts of 4 each"


def test_unknown_room_is_no_failure():
    silent = [{**host, "memory": None, "disk": {"MODEL_DIR": None}} for host in hosts()]
    findings = diagnose(silent, NAMES, REQUIREMENTS)
    assert not any(finding.wrong for finding in findings)
    assert findings[-1].seen == "unknown"


def test_a_wrong_sum_or_a_slow_network_is_told():
    assert not collective(1.0, 0.01).wrong
    assert "0.5" in collective(0.5, 0.01).seen
    assert "NCCL" in collective(1.0, 60.0).cure
