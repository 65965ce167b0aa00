"""A timeline of a served engine and the way of a request, over HTTP and from the command line."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from typer.testing import CliRunner

from cluster.cli import app as command
from tests.deployments.conftest import KEYS, App


def test_a_busy_engine_is_recorded_from_the_command_line(app: App, tmp_path):
    file = tmp_path / "timeline.json"

    recorded = threading.Event()

    def ask() -> None:
        with app.client() as client:
            while not recorded.is_set():
                client.complete("Once upon a time", max_tokens=40, ignore_eos=True)

    asking = threading.Thread(target=ask)
    asking.start()
    options = ["--steps", "10", "--timeout-s", "30", "--url", app.url, "--api-key", KEYS[0]]
    try:
        result = CliRunner().invoke(command, ["timeline", str(file), *options])
    finally:
        recorded.set()
        asking.join()
    assert result.exit_code == 0, result.output
    trace = json.loads(file.read_text())
    assert trace["otherData"]["steps"] == 10
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert {"pass", "plan", "stage", "launch", "wait", "save", "update"} <= names
    assert sum(name.startswith("step ") for name in names) == 10


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("steps=0", "steps"),
        ("steps=many", "steps"),
        ("steps=" + "9" * 3000, "steps"),
        ("steps=" + "many" * 1000, "steps"),
        ("timeout_s=0", "timeout_s"),
        ("timeout_s=" + "x" * 3000, "timeout_s"),
        ("engine=engine-none", "engine"),
        ("engine=" + "x" * 3000, "engine"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(app: App, query, parameter):
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    response = httpx.get(f"{app.url}/v1/timeline?{query}", headers=headers, timeout=30)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == parameter
    assert len(error["message"]) < 300


def test_the_way_of_a_request_is_shown_to_whom_it_belongs(app: App):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"Authorization": f"Bearer {KEYS[0]}", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    headers["X-Request-ID"] = "shop/order 7?"
    body = {"prompt": "Once upon a time", "max_tokens": 4, "n": 2}
    answer = httpx.post(f"{app.url}/v1/completions", headers=headers, json=body, timeout=60).json()
    ways = [httpx.get(f"{app.url}/v1/traces/{name}", headers=headers).json() for name in (answer["id"], trace_id)]
    one, other = ([sequence["request"] for sequence in way["sequences"]] for way in ways)
    assert one == other
    assert len(one) == 2
    for sequence in ways[0]["sequences"]:
        assert {"received", "prepared", "sent", "first_token", "last_token"} <= {
            hop["name"] for hop in sequence["hops"]
        }
    for name in (answer["id"], "shop/order 7?", "shop/order%207%3F"):
        result = CliRunner().invoke(command, ["trace", name, "--url", app.url, "--api-key", KEYS[0]])
        assert result.exit_code == 0, result.output
    assert result.output.count("the ingress has the first token") == 2
    for name, key, status in (
        (answer["id"], KEYS[1], 404),
        ("cmpl-none", KEYS[0], 404),
        (trace_id, "unknown-key", 401),
    ):
        response = httpx.get(f"{app.url}/v1/traces/{name}", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == status, response.text


def test_a_timeline_needs_a_key(app: App):
    assert httpx.get(f"{app.url}/v1/timeline").status_code == 401
