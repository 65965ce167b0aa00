"""What grows with faults and requests until a server ends: nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.application import Setup, application
from tests.chaos.faults import KillProcess
from tests.soak.growth import Record, growths, medians, table
from tests.soak.run import soak

# Each leaves something behind that somebody has to remove.
KILLS = [
    KillProcess(0.1, 0.2, "runner", "decode"),
    KillProcess(0.1, 0.8, "runner", "decode"),
    KillProcess(0.1, 0.5, "ingress"),
    KillProcess(0.1, 0.5, "engine"),
    KillProcess(0.1, 0.0, "haproxy"),
]
SECONDS = 60.0


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


def test_what_fills_at_first_has_not_grown():
    assert medians([5.0, None, *range(6, 10), *[10.0] * 54]) == (10, 10)
    assert medians([1.0, 2.0]) is None


def test_a_record_survives_json_and_keeps_what_could_not_be_seen():
    record = record_of("a", [1.0, 2.0])
    record.add(2.0, 1, 5, {"b": 3.25})
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.counts == {"a": [1.0, 2.0, None], "b": [None, None, 3.2]}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_nothing_grows_with_deaths(tmp_path, capsys):
    setup = Setup(num_engines=3, num_clients=4, max_tokens=120, haproxy=True)
    with application(setup, tmp_path / "tiny") as running:
        report, record = asyncio.run(soak(running, setup, KILLS * 10, seed=1, seconds=SECONDS))
    with capsys.disabled():
        print(f"\n{report}\nfaults by look: {record.faults}\n{table(record)}")
    assert sum(report.faults.values()) >= 5, "too few deaths to tell"
    seen = {name for name in record.counts if medians(record.counts[name]) is not None}
    assert {
        "token sockets",
        "pid files of ended processes",
        "workers in /metrics",
        "memory gcs",
        "asyncio tasks of an ingress",
    } <= seen
    grown = growths(record)
    assert not grown, "\n".join(grown)
