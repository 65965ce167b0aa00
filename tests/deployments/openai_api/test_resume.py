"""A client whose connection broke goes on from its last event, as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import httpx
import pytest

from cluster.client import Client
from cluster.client.api_types import Answer
from tests.deployments.conftest import KEYS, App

# One and a half blocks of the cache.
LONG_PROMPT = " ".join(str(number) for number in range(40))
CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}]}
TEXT = {"prompt": "One, two, three,"}
HEADERS = {"Authorization": f"Bearer {KEYS[0]}", "Bireme-Resumable": "1"}


def events(app: App, path: str, body: dict, last_event_id: str | None = None) -> list[tuple[str | None, dict]]:
    """(id, object) of every event."""
    headers = {**HEADERS, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
    found: list[tuple[str | None, dict]] = []
    response = httpx.post(app.url + path, json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            found.append((None, json.loads(line[6:])))
        elif line.startswith("id: "):
            found[-1] = (line[4:], found[-1][1])
    return found


def resume_field(seen: list[tuple[str | None, dict]], count: int) -> dict:
    choices: list[dict] = [{"token_ids": [], "finish_reason": None} for _ in range(count)]
    for _, event in seen:
        for choice in event["choices"]:
            choices[choice["index"]]["token_ids"] += choice["token_ids"]
            choices[choice["index"]]["finish_reason"] = choice["finish_reason"]
    return {"fingerprint": seen[0][1]["system_fingerprint"], "choices": choices}


def told(found: list[tuple[str | None, dict]]) -> tuple:
    """All that a client learns from events, whatever their boundaries."""
    whole: dict[int, list] = {}
    for _, event in found:
        for choice in event["choices"]:
            text, tokens, logprobs, ends = whole.setdefault(choice["index"], ["", [], [], []])
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            logprobs = [*logprobs, *numbers(choice["logprobs"])]
            ends = [*ends, choice["finish_reason"], choice.get("stop_reason")]
            whole[choice["index"]] = [text, tokens + choice["token_ids"], logprobs, [end for end in ends if end]]
    # What a cache held is no part of an answer.
    usage = {name: count for name, count in found[-1][1]["usage"].items() if name != "prompt_tokens_details"}
    return whole, usage, {event["id"] for _, event in found}, {event["created"] for _, event in found}


def numbers(logprobs: dict | None) -> list:
    if logprobs is None:
        return []
    if "content" in logprobs:
        return [(item["token"], item["logprob"]) for item in logprobs["content"]]
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"]))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "temperature": 0.9, "logprobs": True, "top_logprobs": 1, "max_tokens": 20}),
        ("/v1/completions", {**TEXT, "temperature": 0.8, "n": 2, "logprobs": 1, "max_tokens": 12, "echo": True}),
        ("/v1/completions", {**TEXT, "temperature": 0, "stop": "ten", "frequency_penalty": 0.3, "max_tokens": 40}),
    ],
)
def test_an_answer_taken_up_at_any_event_equals_the_undisturbed_one(app: App, path, body):
    body = {**body, "seed": 5, "stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    whole = events(app, path, body)
    chunks = len(whole) - 1
    for cut in sorted({1, 2, chunks // 2, chunks - 1, chunks}):
        rest = events(app, path, {**body, "resume": resume_field(whole[:cut], body.get("n", 1))}, whole[cut - 1][0])
        taken_up, undisturbed = told(whole[:cut] + rest), told(whole)
        # One answer: the id and the time of its beginning stay.
        assert taken_up == undisturbed, f"cut after event {cut}"


BEGUN = {**TEXT, "stream": True, "return_token_ids": True, "seed": 1, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def begun(app: App) -> tuple[str, dict, str]:
    """The id of an event that came with at least two tokens, what a client has with it, and the id of a chat's event."""
    seen = events(app, "/v1/completions", BEGUN)
    cut = next(i for i in range(1, len(seen)) if len(resume_field(seen[:i], 1)["choices"][0]["token_ids"]) > 1)
    chat = events(app, "/v1/chat/completions", {**CHAT, "stream": True, "max_tokens": 1})
    assert seen[cut - 1][0] and chat[0][0]
    return seen[cut - 1][0], resume_field(seen[:cut], 1), chat[0][0]


@pytest.mark.parametrize(
    ("change", "last_event_id", "message"),
    [
        ({"seed": None}, "same", "seed"),
        ({"stream": False}, "same", "stream=true"),
        ({}, None, "must come together"),
        ({"resume": None}, "same", "must come together"),
        ({}, "cmpl-" + "0" * 32 + ":1:3:0", "the header Last-Event-ID is no event id of this server's"),
        ({}, "chat", "none of this endpoint's"),
        ({"token_ids": []}, "same", "resume has 0 tokens, but the event in Last-Event-ID came with token"),
        ({"n": 2}, "same", "must have 2 entries"),
        ({"max_tokens": 9}, "same", "the same prompt or messages, n and max_tokens"),
        ({"prompt": "Four, five, six,"}, "same", "the same prompt or messages, n and max_tokens"),
        ({"fingerprint": "bireme-0"}, "same", "the fingerprint, token_ids and finish_reason of each choice"),
        ({"fingerprint": "x" * 2000}, "same", "resume.fingerprint"),
    ],
)
def test_what_cannot_be_taken_up_is_refused_by_name(app: App, begun, change, last_event_id, message):
    event_id, has, of_chat = begun
    choice = {**has["choices"][0], **{name: change[name] for name in change if name == "token_ids"}}
    resume = {"fingerprint": change.get("fingerprint", has["fingerprint"]), "choices": [choice]}
    own = {name: value for name, value in change.items() if name not in ("token_ids", "fingerprint")}
    headers = dict(HEADERS)
    if last_event_id is not None:
        headers["Last-Event-ID"] = {"same": event_id, "chat": of_chat}.get(last_event_id, last_event_id)
    body = {**BEGUN, "resume": resume, **own}
    response = httpx.post(f"{app.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


class CuttingProxy:
    """Forwards one connection after the other to the application, and cuts each after so many bytes of its answer."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._target, self._cuts = port, cuts
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            client, _ = self._server.accept()
            self.connections += 1
            left = self._cuts.pop(0) if self._cuts else 2**30
            upstream = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._forward, args=(client, upstream, 2**30), daemon=True).start()
            threading.Thread(target=self._forward, args=(upstream, client, left), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, left: int) -> None:
        try:
            while left > 0 and (data := source.recv(min(4096, left))):
                target.sendall(data)
                left -= len(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_the_client_takes_a_cut_stream_up_by_itself(app: App):
    options = {
        "temperature": 1.0,
        "seed": 9,
        "max_tokens": 40,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }

    def facts(chunks: list[Answer]) -> tuple:
        tokens = [token for chunk in chunks for choice in chunk.choices for token in choice.token_ids or []]
        return "".join(chunk.text for chunk in chunks), tokens, chunks[-1].usage

    with app.client() as client:
        undisturbed = facts(list(client.stream_complete("Once", **options)))
    assert len(undisturbed[1]) == 40
    proxy = CuttingProxy(int(app.url.rsplit(":", 1)[1]), [900, 1700, 1300, 3001])
    with Client(proxy.url, api_key=KEYS[0], timeout=60) as client:
        assert facts(list(client.stream_complete("Once", **options))) == undisturbed
    assert proxy.connections == 5


WHOLE = [
    ("chat", {**CHAT, "temperature": 0.9, "logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 16}),
    ("chat", {**CHAT, "temperature": 0, "prompt_logprobs": 1, "return_token_ids": True}),
    ("complete", {**TEXT, "temperature": 0.8, "n": 2, "logprobs": 1, "max_tokens": 12, "echo": True}),
    ("complete", {"prompt": ["Once", "Twice"], "stop": "the", "max_tokens": 30, "return_token_ids": True}),
    ("complete", {**TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}),
    ("complete", {"prompt": [504, 253], "logprobs": 0, "max_tokens": 4}),
]


@pytest.mark.parametrize(("method", "body"), WHOLE)
def test_a_whole_answer_survives_cut_connections_as_the_server_would_have_sent_it(app: App, method, body):
    body = {**body, "seed": 11}
    path = "/v1/completions" if method == "complete" else "/v1/chat/completions"
    expected = httpx.post(app.url + path, json=body, headers=HEADERS, timeout=120).json()
    proxy = CuttingProxy(int(app.url.rsplit(":", 1)[1]), [900, 700, 1100])
    with Client(proxy.url, api_key=KEYS[0], timeout=60) as client:
        answer = getattr(client, method)(body.pop("prompt" if method == "complete" else "messages"), **body)
    assert proxy.connections > 1
    got = dict(answer.raw)
    for name in ("id", "created"):
        assert type(got.pop(name)) is type(expected.pop(name))
    for whole in (got, expected):
        del whole["usage"]["prompt_tokens_details"]
    assert got == expected


def test_a_break_between_the_last_token_and_the_usage_costs_nothing(app: App):
    body = {**TEXT, "max_tokens": 0, "echo": True, "seed": 1, "stream": True, "return_token_ids": True}
    body["stream_options"] = {"include_usage": True}
    (event_id, only), (_, usage) = events(app, "/v1/completions", body)
    resume = {"fingerprint": only["system_fingerprint"], "choices": [{"token_ids": [], "finish_reason": "length"}]}
    ((_, again),) = events(app, "/v1/completions", {**body, "resume": resume}, event_id)
    assert {
        **again,
        "usage": {**again["usage"], "prompt_tokens_details": usage["usage"]["prompt_tokens_details"]},
    } == usage


def test_the_cached_tokens_of_an_answer_taken_up_are_those_it_began_with(app: App):
    body = {
        "prompt": LONG_PROMPT,
        "temperature": 0,
        "seed": 5,
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 8,
    }
    body = {**body, "n": 2, "stream_options": {"include_usage": True}, "cache_salt": "of this test"}
    for first in (True, False):
        whole = events(app, "/v1/completions", body)
        cached = whole[-1][1]["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached == 0) == first
        rest = events(app, "/v1/completions", {**body, "resume": resume_field(whole[:4], 2)}, whole[3][0])
        assert rest[-1][1]["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


def test_an_answer_that_has_begun_may_be_larger_than_a_request(app: App, begun):
    """What a client sends back is no prompt: the limit of a request's body does not count it. Of an event that is made up it does
    not even read the body."""
    event_id, has, _ = begun
    text = json.dumps({**BEGUN, "resume": has})
    made_up = event_id[:-1] + ("A" if event_id[-1] != "A" else "B")
    found = []
    for last_event_id, num_bytes in ((None, 103_000), (made_up, 103_000), (event_id, 103_000), (event_id, 104_000)):
        headers = {**HEADERS, "Content-Type": "application/json"}
        headers |= {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        body = text + " " * (num_bytes - len(text))
        response = httpx.post(f"{app.url}/v1/completions", content=body, headers=headers, timeout=60)
        found.append(response.status_code)
    # Sixteen choices have room for their names, and each token for its digits.
    assert found == [413, 400, 200, 413]
