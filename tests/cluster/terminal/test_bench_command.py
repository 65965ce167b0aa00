"""``bireme bench`` as a person types it, against a small server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from tests.cluster.bench.small_server import DONE, serving, text, tokens, usage

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "import sys; sys.argv[0] = 'bireme'; from cluster.cli import app; app(prog_name='bireme')"


def bench(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "BIREME_API_KEY": "sk-secret"}
    command = [sys.executable, "-c", PROGRAM, "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, **options)


def test_two_processes_measure_and_two_runs_compare(tmp_path: Path):
    files = tmp_path / "a.json", tmp_path / "b.json"
    with serving(lambda body: [0.01, *tokens(body)]) as server:
        for file, size in zip(files, ("5", "9")):
            ran = bench(
                "--url", f"{server.url}/v1", "--num-prompts", "9", "--max-concurrency", "4", "--processes", "2",
                "--random-input-len", "uniform:8-16", "--random-prefix-len", "4", "--random-output-len", size,
                "--slo-ttft", "30", "--ignore-eos", "--json", str(file),
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            assert "9 requests in" in ran.stdout
            assert "100.0 % within the targets" in ran.stdout
            assert "first token (TTFT)" in ran.stdout
    assert len(server.bodies) == 2 * (9 + 2)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    assert {(body["model"], body["temperature"], body["ignore_eos"]) for body in server.bodies} == {("small", 0, True)}
    assert all(12 <= len(body["prompt"]) <= 20 for body in server.bodies)
    run = json.loads(files[0].read_text())
    assert "sk-secret" not in files[0].read_text()
    assert (run["completed"], run["total_output_tokens"], len(run["requests"])) == (9, 45, 9)
    assert len(run["client_cpu_shares"]) == 2
    assert run["total_input_tokens"] == sum(request["input_tokens"] for request in run["requests"])

    shown = CliRunner().invoke(app, ["bench", "compare", *map(str, files)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "output tokens/s" in shown.stdout
    assert "random_output_len: '5' and '9'" in shown.stdout


def test_text_is_as_long_as_it_should_be_for_the_server_that_counts_it():
    """This server counts a word and a half a word, and ten tokens around a message."""

    def answer(body: dict[str, Any]) -> list[Any]:
        words = len(body["messages"][0]["content"].split())
        return [*(text() for _ in range(body["max_completion_tokens"])), usage(1, 10 + round(1.5 * words)), DONE]

    with serving(answer) as server:
        ran = bench("--url", server.url, "--backend", "openai-chat", "--num-prompts", "2", "--random-input-len", "400")
    assert ran.returncode == 0, ran.stderr
    assert "800 prompt tokens" in ran.stdout or "801 prompt tokens" in ran.stdout, ran.stdout


def interrupted(num_asked: int, server: Any, *options: str) -> tuple[int, str, str]:
    """A run that is ended as a terminal does it when the server has so many requests: exit status, output, errors."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "bench", "--url", server.url, *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while len(server.bodies) < num_asked and time.monotonic() < deadline:
        time.sleep(0.02)
    # To all processes.
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=30)
    return running.returncode, out, err


def test_ctrl_c_shows_what_there_is_so_far(tmp_path: Path):
    file = tmp_path / "run.json"
    with serving(lambda body: tokens(body) if len(server.bodies) < 7 else [text(), 30]) as server:
        options = ["--num-prompts", "50", "--max-concurrency", "1", "--json", str(file)]
        code, out, err = interrupted(7, server, *options)
    assert code == 130, err
    assert "4 requests in" in out, out + err
    assert "1 cut at the end" in out
    assert json.loads(file.read_text())["stopped"] is True
    assert "Traceback" not in err


def test_a_run_that_was_stopped_is_not_told_to_take_more_time():
    with serving(lambda body: [text(), 30]) as server:
        code, out, err = interrupted(3, server, "--num-prompts", "3", "--num-warmups", "0")
    assert (code, "3 cut at the end" in out) == (130, True), out + err
    assert "let it run for longer" in err
    assert "--max-seconds" not in err


def test_a_run_that_was_too_short_for_its_answers_says_so():
    with serving(lambda body: [text(), 30]) as server:
        ran = bench("--url", server.url, "--num-prompts", "3", "--num-warmups", "0", "--max-seconds", "0.5")
    assert ran.returncode == 1
    assert "0 requests in" in ran.stdout
    assert "3 cut at the end" in ran.stdout
    assert "raise --max-seconds" in ran.stderr


def test_errors_are_told_and_are_no_samples():
    with serving(lambda body: [text(), usage(1)]) as server:
        ran = bench("--port", str(server.port), "--num-prompts", "3", "--num-warmups", "0")
    assert ran.returncode == 1
    assert "0 requests in" in ran.stdout
    assert "3 × the stream ended before [DONE]" in ran.stderr


def test_a_timeline_that_could_not_be_kept_is_not_recorded():
    ran = CliRunner().invoke(app, ["timeline", "/nowhere/trace.json", "--url", "http://127.0.0.1:9"])
    assert (ran.exit_code, "FILE: /nowhere/trace.json cannot be written" in ran.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--request-rate", "0"], "--request-rate: got 0, allowed: more than 0, or inf"),
        (["--random-input-len", "many"], "--random-input-len: got 'many', allowed: N, uniform:LOW-HIGH"),
        (["--backend", "grpc"], 'must be "openai", "vllm" or "openai-chat", got "grpc"'),
        (["--burstiness", "0"], 'must be at least 0.01, got "0"'),
        (["--token-ids", "9-3"], "--token-ids: got '9-3', allowed: LOW-HIGH"),
        (["--prompts", "ids", "--backend", "openai-chat"], "--prompts ids: chat takes text"),
        (["--extra-body", "[]"], "--extra-body: got '[]', allowed: a JSON object"),
        (["--extra-body", '{"n": 2}'], "--extra-body: n cannot be set"),
        (["--host", "there"], "--host: needs --port"),
        (["--header", "x"], "--header: got 'x', allowed: NAME=VALUE"),
        (["--json", "/nowhere/run.json"], "--json: /nowhere/run.json cannot be written"),
        (["--processes", "9", "--max-concurrency", "2"], "--processes: got 9, allowed: up to --max-concurrency, 2"),
        (["--url", "localhost:8000"], "--url: got 'localhost:8000', allowed: http://HOST:PORT"),
        (["--max-concurency", "2"], "--max-concurrency"),
        (["compare", "a.json", "b.json"], "a.json: No such file or directory"),
        (["compair"], "compare"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(arguments: list[str], said: str):
    ran = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert ran.exit_code == 2, ran.output
    assert said in ran.output, ran.output


def test_nobody_there_is_one_line():
    ran = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9"])
    assert ran.exit_code == 1
    assert "Error: " in ran.output
    assert len(ran.output.splitlines()) <= 3
