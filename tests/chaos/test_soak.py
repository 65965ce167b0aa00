"""What grows with faults and requests until a server ends: nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.chaos.faults.kinds import KillProcess
from tests.chaos.served.application import Setup, application
from tests.soak.growth import Record, Slope, growths, medians, slope, table
from tests.soak.pid_files import LeftPidFiles
from tests.soak.run import soak

# Each leaves something behind that somebody has to remove.
KILLS = [
    KillProcess(0.1, 0.2, "runner", "decode"),
    KillProcess(0.1, 0.8, "runner", "prefill"),
    KillProcess(0.1, 0.5, "ingress", "decode"),
    KillProcess(0.1, 0.5, "engine"),
    KillProcess(0.1, 0.0, "haproxy"),
]
SECONDS = 45.0
ROOT = Path(__file__).parents[2]


def record_of(name: str, values: list[float]) -> Record:
    record = Record()
    for second, value in enumerate(values):
        record.add(second, 0, 0, {name: value})
    return record


@pytest.mark.parametrize(
    "name", ["token sockets", "pid files", "lines of /metrics", "memory gcs", "descriptors ingress"]
)
def test_a_count_that_rises_all_the_time_has_grown(name):
    steady = [1000.0 + look % 3 for look in range(60)]
    assert growths(record_of(name, steady)) == []
    assert growths(record_of(name, [1000.0 + 20 * look for look in range(60)])) != []


@pytest.mark.parametrize(
    ("name", "an_hour"),
    [
        ("memory runner", 60),
        ("memory engine", 60),
        ("memory ingress", 150),
        ("memory gcs", 90),
        ("descriptors runner", 60),
        ("threads ingress", 36),
        ("asyncio tasks of an ingress", 120),
        ("token sockets", 20),
    ],
)
def test_a_steady_leak_is_seen_among_the_noise_of_a_real_soak_though_no_third_is_much_higher(name, an_hour):
    """The record of ten minutes of faults, and a leak in it that is smaller than any step which a fault may leave."""
    record = Record.from_json((ROOT / "docs/lab/soak.json").read_text())
    assert growths(record) == []
    leaking = [
        None if value is None else value + int(an_hour * second / 3600)
        for second, value in zip(record.seconds, record.counts[name])
    ]
    record.counts[name] = leaking
    (line,) = growths(record)
    assert line.startswith(f"{name}: ") and "more an hour" in line


def test_the_noise_of_one_look_and_a_single_step_are_no_slope():
    seconds = [10.0 * look for look in range(60)]
    assert slope(seconds, [100.0 + look % 7 for look in range(60)]).least < 0
    assert slope(seconds, [100.0 + 4 * (look > 40) for look in range(60)]).least == 0
    spikes = slope(seconds, [100.0 + 500 * (look % 10 == 9) for look in range(60)])
    assert spikes.least <= 0 <= spikes.found < 1
    assert slope(seconds, [100.0 + look for look in range(60)]) == Slope(pytest.approx(360), pytest.approx(360))
    assert slope([look / 2 for look in range(60)], [float(look) for look in range(60)]) is None, "half a minute"


def test_what_fills_at_first_has_not_grown():
    assert medians([5.0, None, *range(6, 10), *[10.0] * 54]) == (10, 10)
    assert medians([1.0, 2.0]) is None


def test_a_record_survives_json_and_keeps_what_could_not_be_seen():
    record = record_of("a", [1.0, 2.0])
    record.add(2.0, 1, 5, {"b": 3.25})
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.counts == {"a": [1.0, 2.0, None], "b": [None, None, 3.2]}


def test_a_pid_file_is_left_when_starts_do_not_remove_it(tmp_path):
    """Starts are new files of running processes."""
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["true"]) as other:
        pass
    left = LeftPidFiles(tmp_path)
    for pid in (ended.pid, other.pid, os.getpid()):
        (tmp_path / str(pid)).touch()
    assert [left.look(), left.look()] == [0, 0], "no start since then"
    running = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        for one in running:
            (tmp_path / str(one.pid)).touch()
        (tmp_path / str(other.pid)).unlink()
        assert left.look() == 1
    finally:
        for one in running:
            one.kill()
            one.wait()
    (tmp_path / str(ended.pid)).unlink()
    assert left.look() == 0


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_nothing_grows_with_deaths(tmp_path, capsys):
    setup = Setup(num_engines=3, num_clients=4, max_tokens=120, haproxy=True)
    with application(setup, tmp_path / "tiny") as running:
        report, record = asyncio.run(soak(running, setup, KILLS * 10, seed=1, seconds=SECONDS))
    with capsys.disabled():
        print(f"\n{report}\nfaults by look: {record.faults}\n{table(record)}")
    assert sum(report.faults.values()) >= 5, "too few deaths to tell"
    assert (report.lost, report.changed, report.leaks) == ([], [], [])
    seen = {name for name in record.counts if medians(record.counts[name]) is not None}
    assert {
        "token sockets",
        "pid files that starts left",
        "workers in /metrics",
        "memory gcs",
        "asyncio tasks of an ingress",
    } <= seen
    grown = growths(record)
    assert not grown, "\n".join(grown)
