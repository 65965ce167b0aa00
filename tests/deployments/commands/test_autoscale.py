"""``bireme autoscale``: what it shows, what it refuses, and how it finds the server. One that runs is in
``whole_application/test_autoscaling_objectives.py``."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cluster.config import Autoscaling
from deployments.cli import app
from deployments.commands.autoscale import _changes, lines_of
from deployments.start.run_files.past_sessions import head_address
from tests.test_docs import shown_block

SAID = {
    "line": {"min_replicas": 1, "max_replicas": 4, "slo_ttft_s": 2.0},
    "settings": {"min_replicas": 1, "max_replicas": 4, "slo_ttft_s": 1.5},
    "target": 3,
    "running": 2,
    "reason": "up: the load needs 2.40 engines",
    "sequence": 1288,
    "at": 1000.0,
    "log": "/logs/autoscaling.jsonl",
}


def test_it_shows_what_is_in_force_and_what_was_decided():
    assert list(lines_of(SAID, now=1000.4)) == [
        "min_replicas  1",
        "max_replicas  4",
        "slo_ttft_s    1.5  (configured: 2.0)",
        "engines       2 running, 3 wanted",
        "why           up: the load needs 2.40 engines",
        "decided       0.4 s ago, number 1288",
        "log           /logs/autoscaling.jsonl",
    ]


def test_the_page_shows_the_lines_that_there_are():
    command, *shown, last = shown_block("docs/autoscaling.md", __file__).splitlines()
    settings = Autoscaling(max_replicas=4).model_dump(mode="json")
    said = SAID | {"line": settings, "settings": settings}
    assert command == "$ bireme autoscale"
    assert [line.split()[0] for line in shown] == [line.split()[0] for line in lines_of(said, now=1000.4)]
    program, name, *changes = last.removeprefix("$ ").split()
    assert (program, name) == ("bireme", "autoscale")
    assert _changes(changes).keys() <= settings.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slo_ttft_s"], "'slo_ttft_s' is no setting of the form NAME=VALUE"),
        ([], "no server of yours runs on this machine"),
        (["--replay", "/nowhere/log.jsonl"], "--replay: /nowhere/log.jsonl: No such file"),
    ],
)
def test_what_it_cannot_do_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr("deployments.commands.autoscale.ray_base", lambda: tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    shown = CliRunner().invoke(app, ["autoscale", *arguments])
    assert shown.exit_code == 1
    assert said in shown.output.replace("\n", " ")


def test_a_log_of_nothing_is_replayed_to_nothing(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("no record\n")
    shown = CliRunner().invoke(app, ["autoscale", "--replay", str(log)])
    assert shown.exit_code == 0
    assert shown.output.splitlines()[:2] == ["0 decisions made again, 0 of them otherwise", "1 lines are no records"]


def test_the_head_of_a_session_is_on_the_port_that_ray_wrote_down(tmp_path):
    assert head_address(tmp_path) is None
    (tmp_path / "gcs_server_port_abc").write_text("41589")
    assert head_address(tmp_path) == "127.0.0.1:41589"
