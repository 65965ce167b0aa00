"""``bireme status`` says what a person has to know of each address: ready, loading, asleep, or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app

_STATUS = {"replicas": {"LLMServer": {"RUNNING": 1}}, "engines": [], "ingresses": [], "events": {}}
_RECOVERIES = {"count": 0, "total_s": 0.0, "longest_s": 0.0}


@contextmanager
def server(health: bytes, status: int = 200) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers: dict[str, Any] = {
                "/health": health,
                "/v1/models": b'{"data": [{"id": "small", "max_model_len": 64}]}',
                "/v1/status": json.dumps({**_STATUS, "recoveries": _RECOVERIES}).encode(),
            }
            body = answers[self.path]
            self.send_response(status if self.path == "/health" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """The test says what is wrong."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def shown(*arguments: str):
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["status", *arguments])


@pytest.mark.parametrize(
    ("health", "status", "said", "code"),
    [
        (b'{"status": "ok"}', 200, "ready", 0),
        (b"", 200, "ready", 0),
        (b"[]", 200, "ready", 0),
        (b'{"status": "asleep"}', 200, "asleep: no engine runs, and the next request starts one", 0),
        (b'{"status": "loading"}', 503, "loading", 1),
    ],
)
def test_the_first_line_is_the_servers_state(health, status, said, code):
    with server(health, status) as url:
        found = shown("--url", url)
        assert (found.stdout.splitlines()[0], found.exit_code) == (f"{url}: {said}", code)
        assert ("small" in found.stdout) == (code == 0)
        objects = json.loads(shown("--url", url, "--json").stdout)
        assert (objects["ready"], objects["asleep"]) == (code == 0, "asleep" in said)
        assert "other_urls" not in objects


@pytest.mark.parametrize("is_first", [True, False])
def test_an_address_that_does_not_answer_is_named_beside_one_that_does(dead, is_first):
    with server(b'{"status": "ok"}') as url, server(b"", 503) as loading:
        given = [dead, url, loading] if is_first else [url, loading, dead]
        found = shown("--url", ",".join(given))
        lines = found.stdout.splitlines()
        assert (lines[0], found.exit_code) == (f"{url}: ready", 0)
        assert f"{loading}: loading" in lines[1:3]
        assert any(line.startswith(f"{dead}: no answer: ") for line in lines[1:3])
        others = json.loads(shown("--url", ",".join(given), "--json").stdout)["other_urls"]
        assert others[loading] == "loading" and others[dead].startswith("no answer")


def test_if_nobody_answers_that_is_an_error(dead):
    found = shown("--url", f"{dead},{dead}/v1")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith("Error:")
