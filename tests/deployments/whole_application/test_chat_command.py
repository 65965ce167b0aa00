"""Commands that talk to a server: ``bireme chat`` at a terminal, and those that read and write files and pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.deployments.conftest import KEYS, App, wait_for
from tests.terminal import Terminal

ROOT = Path(__file__).resolve().parents[3]


def test_ctrl_c_stops_an_answer_or_clears_a_line_and_leaves_an_empty_one(app: App):
    command = [sys.executable, "-m", "deployments.cli", "chat", "--url", app.url, "--temperature", "0"]
    terminal = Terminal(*command, BIREME_API_KEY=KEYS[0])
    try:
        terminal.read_until("> ")
        terminal.type("Tell me a very long story about the sea.\n")
        wait_for(lambda: app.stats()["num_requests_running"] == 1, 60, "the request does not run")
        terminal.type("\x03")
        terminal.read_until("(stopped)")
        terminal.read_until("> ")
        app.wait_until_idle()
        terminal.type("Name the capital of France.\n")
        assert "The capital of France is Paris." in terminal.read_until("Paris.")
        assert re.search(r"\d+ tokens, [\d.]+ tokens/s, seed \d+", terminal.read_until("> "))
        terminal.type("/set max_tokens=1\r")
        terminal.read_until("(max_tokens=1)")
        # A letter is put in before the last one; the line before is fetched again; two lines that are pasted are one message.
        for typed in ("/hep\x1b[Dl\r", "\x1b[A\r"):
            terminal.type(typed)
            terminal.read_until("another system message")
            terminal.read_until("> ")
        terminal.type("\x1b[200~first line\nsecond line\x1b[201~\r")
        terminal.read_until("1 tokens, seed")
        terminal.type("/bye\r")
        assert "seed" not in terminal.read_until("/bye is no command")
        terminal.read_until("> ")
        # Half a line goes; an empty one leaves, the second time.
        terminal.type("Tell me")
        terminal.read_until("Tell me")
        terminal.type("\x03")
        terminal.read_until("> ")
        terminal.type("/set\r")
        terminal.read_until("max_tokens=1")
        terminal.read_until("> ")
        terminal.type("\x03")
        terminal.read_until("Ctrl-C again")
        terminal.read_until("> ")
        terminal.type("\x03")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()


@pytest.mark.parametrize("command", [["status"], ["top", "--every", "0.2"]])
def test_sixty_columns_hold_what_is_shown(app: App, command: list[str]):
    """No line is broken by the terminal, which would tear the table of engines apart."""
    terminal = Terminal(sys.executable, "-m", "bireme", *command, "--url", app.url, BIREME_API_KEY=KEYS[0])
    terminal.resize(60)
    try:
        last = "generated" if command == ["status"] else "KV"
        shown = terminal.read_until(last, 30)
        lines = [line.rstrip() for line in shown.replace("\r", "").split("\n")]
        assert max(map(cell_len, lines)) <= 60, lines
        if command != ["status"]:
            assert any(line.split()[:1] == ["engine"] and line.endswith("KV") for line in lines), lines
            assert max(map(cell_len, terminal.read_until(" %").split("\r\n"))) <= 60
            terminal.type("\x03")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()


def run(app: App, *arguments: str, piped: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments, "--url", app.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BIREME_API_KEY": KEYS[0]},
        input=piped,
        capture_output=True,
        timeout=120,
    )


def test_a_prompt_may_come_in_a_pipe_and_status_be_for_programs(app: App):
    options = ["--temperature", "0", "--max-tokens", "8"]
    piped = run(app, "complete", *options, piped=b"One, two, three,\n")
    assert piped.stdout == run(app, "complete", "One, two, three,", *options).stdout != b""
    assert run(app, "complete", piped=b"\xff").stderr.startswith(b"Error: the prompt is not UTF-8")
    found = json.loads(run(app, "status", "--json").stdout)
    assert (found["ready"], len(found["engines"]) > 0, len(found["models"]) > 0) == (True, True, True)
    top = run(app, "top", "--once").stdout.decode()
    assert found["engines"][0]["engine_id"].removeprefix("engine-") in top


def test_a_batch_file_is_answered_line_by_line_and_gone_on_with(app: App, tmp_path):
    file, results = tmp_path / "batch.jsonl", tmp_path / "batch.results.jsonl"
    body = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    requests = [
        ("/v1/completions", {"prompt": "One, two,", **body}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], **body}),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}),
        ("/v1/completions", {"prompt": "Three, four,", **body}),
    ]
    file.write_text(
        "\n".join(
            json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": body})
            for i, (url, body) in enumerate(requests)
        )
    )
    ran = run(app, "run-batch", str(file))
    # The path alone is longer than 80 columns may be: in a pipe no line is broken.
    assert (ran.returncode, b".results.jsonl: 4 results, 1 errors, 12 tokens" in ran.stdout) == (1, True), ran
    assert ran.stdout.count(b"\n") == 1
    whole = results.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in whole]
    assert [(row["custom_id"], row["response"]["status_code"]) for row in rows] == [
        ("0", 200),
        ("1", 200),
        ("2", 400),
        ("3", 200),
    ]
    assert rows[1]["response"]["body"]["choices"][0]["message"]["content"]
    results.write_bytes(b"".join(whole[:2]) + whole[2][:9])
    run(app, "run-batch", str(file))
    again = [json.loads(line) for line in results.read_bytes().splitlines()]
    assert again[:2] == rows[:2]
    finished = run(app, "run-batch", str(file))
    assert (finished.returncode, b"4 of 4 are done already, 1 of them with errors" in finished.stderr) == (1, True)
    texts = [[row["response"]["body"].get("choices") for row in found] for found in (rows, again)]
    assert texts[0] == texts[1]
