"""Who of a node's spare processes is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deployments.spares import roster as roster_module
from deployments.spares.roster import Roster, Spare

_CHILD = """
import sys
from deployments.spares import roster
roster.private_base = lambda longest: __import__("pathlib").Path(sys.argv[1])
here = roster.Roster("group", "node")
here.join("runner")
here.ready("runner")
if sys.argv[2] == "keep":
    here.keep()
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(roster_module, "private_base", lambda longest: tmp_path)
    return tmp_path


def ask(roster: Roster, kind: str = "runner") -> None:
    with roster.asking(kind):
        pass


def child(base, what: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(base), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def test_a_spare_is_there_from_its_start_until_it_leaves_or_dies(base):
    roster = Roster("group", "node")
    assert roster.spares("runner") == []
    first, second = child(base, "join"), child(base, "join")
    assert sorted(roster.spares("runner")) == sorted([Spare(first.pid, True), Spare(second.pid, True)])
    assert roster.spares("replica") == [] and Roster("group", "another").spares("runner") == []
    first.kill()
    first.wait()
    assert roster.spares("runner") == [Spare(second.pid, True)]
    second.communicate()

    roster.join("runner")
    (own,) = roster.spares("runner")
    assert not own.is_ready
    roster.leave("runner")
    roster.ready("runner")
    assert roster.spares("runner") == [], "who has left does not come back by being ready"


def test_a_keeper_counts_as_long_as_it_lives(base):
    roster = Roster("group", "node")
    assert roster.keeper() is None
    keeper = child(base, "keep")
    assert roster.keeper() == keeper.pid
    keeper.kill()
    keeper.wait()
    assert roster.keeper() is None


def test_each_who_joins_comes_for_the_first_of_those_who_asked(base, monkeypatch):
    roster = Roster("group", "node")
    monkeypatch.setattr(roster_module, "has_ended", lambda pid: False)
    asked, came = [*range(20, 8, -1), *range(100, 112)], []
    for pid in asked:
        with monkeypatch.context() as patch:
            patch.setattr(roster_module.os, "getpid", lambda pid=pid: pid)
            ask(roster, "replica" if pid % 3 else "runner")
    for _ in asked:
        came.append((roster.join("runner"), roster.join("replica")))
    runners, replicas = ([pid for pid in pids if pid] for pids in zip(*came))
    assert runners == [pid for pid in asked if pid % 3 == 0]
    assert replicas == [pid for pid in asked if pid % 3]


def test_nobody_is_coming_where_none_could_be_started(base):
    roster = Roster("group", "node")

    def fail() -> None:
        with roster.asking("runner"):
            assert roster.num_coming("runner") == 1
            raise ConnectionError("the node does not answer")

    with pytest.raises(ConnectionError):
        fail()
    assert roster.num_coming("runner") == 0 and roster.join("runner") is None


def test_nobody_is_asked_for_twice(base, monkeypatch):
    roster = Roster("group", "node")
    assert roster.join("runner") is None, "it was started for an actor"
    roster.leave("runner")
    assert roster.num_coming("runner") == 0
    ask(roster)
    ask(roster)
    assert (roster.num_coming("runner"), roster.num_coming("replica")) == (2, 0)
    first, second = child(base, "join"), child(base, "join")
    assert roster.num_coming("runner") == 0 and len(roster.spares("runner")) == 2
    gone = child(base, "join")
    gone.communicate()
    ask(roster)
    assert roster.join("runner") == os.getpid()
    ask(roster)
    with monkeypatch.context() as patch:
        patch.setattr(roster_module.os, "getpid", lambda: gone.pid)
        ask(roster)
    assert roster.num_coming("runner") == 1, "who asked and died is nobody's end"
    monkeypatch.setattr(roster_module, "COMING_S", 0.0)
    assert roster.num_coming("runner") == 0, "it does not come any more"
    first.communicate()
    second.communicate()
