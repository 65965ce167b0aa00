"""What a client names in a request is one word of a log line, or is in none."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import ray

from deployments.http.server.door import HttpDoor
from tests.deployments.conftest import KEYS, App, wait_for
from tests.deployments.openai_api.test_resume import events, resume_field

FORGED = re.compile(r"(^|[^\w%])request=forged|\x1b|[\x85\u2028]", re.MULTILINE)
TEXT = "x -- event=engine_dead request=forged"
HEADERS = {"Authorization": f"Bearer {KEYS[0]}", "Content-Type": "application/json"}


def lines_of(folder: Path, offsets: dict[Path, int]) -> str:
    """What was written to the log files in ``folder`` after ``offsets``."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(offsets.get(path, 0))
                texts.append(file.read().decode("utf-8", "replace"))
    return "\n".join(texts)


def raw_request(url: str, head: bytes) -> int:
    """The status that ``head``, with what no HTTP library would send, is answered with; 0 for a closed connection."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        connection.sendall(head)
        answer = connection.recv(64)
    return int(answer.split()[1]) if answer else 0


def test_no_line_of_any_log_holds_a_forged_field(app: App):
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    before = {path: path.stat().st_size for path in logs.rglob("*") if path.is_file()}
    body = {
        "prompt": "One, two,",
        "max_tokens": 2,
        "stream": True,
        "return_token_ids": True,
        "seed": 1,
        **dict.fromkeys(("user", "cache_salt", "safety_identifier", "prompt_cache_key"), TEXT),
        "metadata": {"a": TEXT},
    }
    seen = events(app, "/v1/completions", body)
    named = dict.fromkeys(("X-Request-ID", "X-Session-ID", "serve-multiplexed-model-id", "X-Forwarded-For"), TEXT)
    # An event in the log of the ingress, within the request and so under its id.
    first = next(i for i, (_, event) in enumerate(seen) if event["choices"])
    resumed = {**body, "resume": resume_field(seen[: first + 1], 1)}
    answer = httpx.post(
        f"{app.url}/v1/completions",
        json=resumed,
        headers={**HEADERS, **named, "Last-Event-ID": seen[first][0]},
        timeout=60,
    )
    assert answer.status_code == 200
    statuses = [
        httpx.request(method, app.url + path, content=content, headers={**HEADERS, **named, **headers}).status_code
        for method, path, content, headers in [
            ("GET", f"/v1/models/{TEXT}", "", {}),
            ("GET", f"/{TEXT}?{TEXT}", "", {"Host": f"{TEXT}.x"}),
            ("GET", f"/v1/timeline?steps={TEXT}", "", {}),
            ("POST", "/v1/completions", json.dumps({"prompt": "x", "model": TEXT}), {}),
            ("POST", "/v1/completions", json.dumps({"prompt": "x", "request_id": TEXT}), {}),
            ("POST", "/v1/completions", json.dumps({"prompt": "x", TEXT: 1, "max_tokens": f"\n{TEXT}"}), {}),
            ("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": TEXT, "content": TEXT}]}), {}),
            ("POST", "/v1/completions", f"\n{TEXT}", {}),
            ("POST", "/v1/completions", "{}", {"Last-Event-ID": TEXT, "Content-Type": TEXT}),
            ("GET", "/v1/models", "", {"Authorization": f"Bearer {TEXT}"}),
            ("POST", "/v1/chat/completions", "{}", {"Authorization": f"Bearer {TEXT}"}),
        ]
    ]
    assert statuses == [404, 404, 400, 404, 400, 400, 400, 400, 400, 401, 401]
    for value in (b"\x1b[31m" + TEXT.encode(), b"\xff" + TEXT.encode(), "\u2028".encode() + TEXT.encode(), b"\t", b""):
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: " + value + b"\r\nX-Session-ID: " + value
        head += (
            b"\r\nX-Request-Timeout-Seconds: \xff\r\nX-Request-Disconnect-Disabled: \xff\r\ntraceparent: \xff\r\n\r\n"
        )
        assert raw_request(app.url, head) in (200, 400), value
    word = "x%20--%20event%3Dengine_dead%20request%3Dforged"
    wait_for(lambda: word in lines_of(logs, before), 10, "the requests are in no log")
    found = lines_of(logs, before)
    assert f"{word} -- event=client_resumes" in found
    of_refused = re.findall(
        rf"{word} -- event=request x_request_id={word} model=\S+ endpoint=(\S+) status=(\d+)", found
    )
    assert set(of_refused) == {
        *[("/v1/chat/completions", "400"), ("/v1/chat/completions", "401")],
        *[("/v1/completions", "400"), ("/v1/completions", "404")],
    }
    assert [line for line in found.splitlines() if FORGED.search(line)] == []


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (b"01-ab:cd/e.f_g~h+i@j,k", b"01-ab:cd/e.f_g~h+i@j,k"),
        (b"already%20quoted", b"already%20quoted"),
        (b"a b=c\"'\x1b\xff", b"a%20b%3Dc%22%27%1B%FF"),
        (b"x" * 300, b"x" * 256),
    ],
)
async def test_the_door_makes_one_word_of_an_id(value, word):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)

    headers = [(b"x-request-id", value), (b"X_Session_Id", value), (b"other", value), (b"x-request-id", b"")]
    headers += [(b"x-request-timeout-seconds", b"\xff"), (b"traceparent", b"00-1")]
    scope = {"type": "http", "headers": headers, "client": ("a b", 1)}
    await HttpDoor(app)(scope, None, None)
    assert seen["headers"] == [
        (b"x-request-id", word),
        (b"X_Session_Id", word),
        (b"other", value),
        (b"traceparent", b"00-1"),
    ]
    assert seen["client"] == ("a%20b", 1)
    assert scope["headers"] is headers
