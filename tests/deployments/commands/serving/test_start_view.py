"""The stages of a start, the block at its end, and the lines of the log that a person sees."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.commands.serving.engine_starts import ended_stages
from deployments.commands.serving.ready_block import memory_row, ready_block
from deployments.commands.serving.server_log import LineBudget, shown
from deployments.commands.serving.start_view import StartView
from deployments.start.ready_line import curl
from tests.terminal import Terminal

ROOT = Path(__file__).resolve().parents[4]
_SERVE = "(ServeReplica:default:OpenAiIngress pid=7) {} 2026-01-01 00:00:00,000 default_OpenAiIngress abc req -- {}"

# A server that is killed by nobody, fails, or is stopped, with a log in argv[1].
SERVER = """
import os, sys, time
from pathlib import Path
from deployments.commands.serving.server_log import ServerLog
from deployments.commands.serving.start_view import StartView
view = StartView(1)
log = ServerLog(Path(sys.argv[1]), view.line, everything=sys.argv[2:] == ["verbose"])
view.redirect(log.terminal)
view.begin("one")
os.write(2, b"of a library\\n")
print("of Python", flush=True)
for _ in range(5):
    view.tick("with its detail")
    time.sleep(0.05)
view.end()
sys.stderr.write("(ServeReplica:x:OpenAiIngress pid=1) INFO now OpenAiIngress x -- event=request id=cmpl-1 tokens=2\\n")
sys.stderr.write("ValueError: a fault\\n")
log.give_back()
view.close()
print("relevant:", log.relevant_lines())
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written(tmp_path):
    file = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield file, lambda: (tmp_path / "out").read_bytes().decode()
    os.close(file)


def test_where_nothing_can_move_a_stage_is_one_line_when_it_ends(written):
    clock, (file, text) = Clock(), written
    view = StartView(file, now=clock)
    view.begin("Ray")
    view.tick("detail")
    clock.now = 2.5
    view.begin("weights")
    view.close()
    assert text() == "  Ray                             2.5 s\n"


def test_what_no_terminal_shows_is_unbroken_unless_a_width_is_given(written, monkeypatch):
    file, _ = written
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = {"dashboard": f"http://127.0.0.1:8265, token: cat /{'folder/' * 30}auth_token"}
    _, line, _ = ready_block(rows, StartView(file).columns)
    assert rows["dashboard"] in line
    monkeypatch.setenv("COLUMNS", "60")
    assert StartView(file).columns == 60


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_what_moves_fits_into_the_terminal_and_is_gone_before_a_line(written, columns):
    clock, (file, text) = Clock(), written
    view = StartView(file, moves=True, now=clock, columns=columns)
    view.begin("engine: weights")
    view.tick("a file with a very long name of a model that nobody knows")
    drawn = text().removeprefix("\r\x1b[K")
    assert len(drawn) < columns
    view.line("a line")
    assert text().endswith("\r\x1b[Ka line\n")


def test_a_terminal_shows_what_moves_and_nothing_of_what_libraries_print(tmp_path):
    terminal = Terminal(sys.executable, "-c", SERVER, str(tmp_path / "logs"))
    try:
        printed = terminal.read_until("relevant: ['ValueError: a fault']")
    finally:
        terminal.close()
    assert "one: with its detail" in printed
    assert "id=cmpl-1 tokens=2" in printed
    assert "of a library" not in printed
    assert "of Python" not in printed


def test_a_pipe_gets_lines_and_the_log_is_this_users_alone(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path / "logs")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    stage, request, relevant = ran.stdout.splitlines()
    assert stage.split()[0] == "one"
    assert (request, relevant) == ("id=cmpl-1 tokens=2", "relevant: ['ValueError: a fault']")
    (log,) = (tmp_path / "logs").iterdir()
    assert log.stat().st_mode & 0o077 == 0
    assert "of a library\nof Python\n" in log.read_text()


def test_whoever_asks_for_all_gets_what_libraries_print_too(tmp_path):
    command = [sys.executable, "-c", SERVER, str(tmp_path / "logs"), "verbose"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert {"of a library", "of Python", "ValueError: a fault"} < set(printed)
    assert any("event=request id=cmpl-1 tokens=2" in line for line in printed)


def test_of_the_log_a_person_sees_requests_and_events_that_are_no_everyday_ones():
    assert shown(f"\x1b[36m{_SERVE.format('INFO', 'event=request id=a tokens=1')}\x1b[0m") == "id=a tokens=1"
    assert shown(_SERVE.format("WARNING", "event=silent_engines engine=e")) == "warning: silent_engines engine=e"
    assert shown(_SERVE.format("INFO", "event=recovered request=r")) is None
    assert shown(_SERVE.format("WARNING", "Replica is slow")) is None
    assert shown("event=request id=a") is None, "not of a process of the cluster"


def test_of_a_storm_a_count_is_left():
    clock = Clock()
    budget = LineBudget(10, clock)
    assert sum(budget.take() for _ in range(100)) == 10
    assert budget.left_out() == 0
    clock.now = 1.0
    assert budget.left_out() == 90
    assert budget.left_out() == 0


def test_the_width_is_the_terminals_also_while_stdout_is_a_log(tmp_path):
    script = """
import os, sys
from deployments.commands.serving.start_view import StartView
view = StartView(1)
view.redirect(os.dup(1))
os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 1)
sys.stdin.readline()
view.line(f"{view.columns} columns")
"""
    terminal = Terminal(sys.executable, "-c", script, str(tmp_path / "log"))
    terminal.resize(57)
    terminal.type("go\r")
    terminal.read_until("57 columns", 30)
    assert terminal.process.wait(10) == 0


def test_a_block_has_a_frame_that_fits_and_a_command_is_one_line_for_the_shell():
    rows = {"URL": "http://127.0.0.1:8000/v1", "model": "tiny"}
    wide = ready_block(rows, 80)
    assert len({len(line) for line in wide}) == 1
    assert wide[1] == "│ URL    http://127.0.0.1:8000/v1 │"
    assert ready_block(rows, 20)[1] == "│ URL    http://127.0.0.1:8000/v1"
    parted = ready_block({"memory": memory_row(1456, 16, 8192, 16), "log": "/" + "x" * 70}, 60)
    assert parted[1:3] == [
        "│ memory  2 × 8,192 tokens (KV cache of 23,296), at most 16",
        "│         streams at once",
    ]
    assert parted[3] == "│ log     /" + "x" * 70
    command = curl("http://h:1", "it's", needs_key=True)
    assert "\n" not in command
    assert '"model": "it\'s"' in shlex.split(command)[-1]


@pytest.mark.parametrize(("num_blocks", "streams"), [(128, 2), (127, 1), (63, 0)])
def test_memory_is_whole_streams_of_the_longest(num_blocks, streams):
    assert memory_row(num_blocks, 16, 1024, 8).startswith(f"{streams} × 1,024 tokens (KV cache of {num_blocks * 16:,})")


def test_stages_of_an_engine_that_took_time_have_names():
    seconds = {"replica": 1.0, "ops": 0.0, "weights": 2.0, "ready": 0.1, "seen": 5.0}
    assert ended_stages({"seconds": seconds}) == [
        ("engine: process", 1.0),
        ("engine: weights", 2.0),
        ("engine: ready", 0.1),
    ]
