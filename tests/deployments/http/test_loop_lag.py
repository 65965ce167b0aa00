"""No request of an allowed size keeps an ingress's event loop to itself: other clients' tokens go on.

The real application, with the default model's tokenizer and the engines played by a list of tokens, handles the largest bodies of
every kind; beside it, in the same loop, something wakes every five milliseconds.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import json
import resource
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.text.chat_template import ChatTemplate
from cluster.outputs import FINISH_LENGTH, TokenDelta, TokenLogprobs
from deployments.answers.event_stream import EventStream
from deployments.answers.whole_answer import WholeAnswer
from deployments.http.body import default_body_bytes
from deployments.http.keys import ApiKeys
from deployments.http.large_requests import large_requests
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.answers.event_ids import EventIds, ResumePoint
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import OpenAiService
from tests.deployments.ingress_without_ray import application_of
from tests.deployments.openai_api.points import point_of
from tests.deployments.played_engines import Engines

MAX_MODEL_LEN, MAX_CHOICES = 8192, 128
MAX_BYTES = default_body_bytes(MAX_MODEL_LEN, MAX_CHOICES)
# What is promised is 50 ms. Counted is the time of this process, not what others took from it.
MAX_LAG_S = 0.25
OPEN = ApiKeys([])
ENTRY = TokenLogprobs(-1.0, 1, list(range(100, 120)), [-1.0] * 20)


class Lag:
    """The longest time between two turns of the event loop, in seconds of the process's own time and of the clock."""

    def __init__(self) -> None:
        self.own, self.clock = 0.0, 0.0

    async def __aenter__(self) -> Lag:
        self._task = asyncio.create_task(self._probe())
        await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(0.02)
        self._task.cancel()

    async def _probe(self) -> None:
        own, clock = time.process_time(), time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.process_time(), time.perf_counter()
            self.own, self.clock = max(self.own, now[0] - own), max(self.clock, now[1] - clock)
            own, clock = now


@pytest.fixture(scope="module")
def tokenizer(smollm2_tokenizer):
    assert smollm2_tokenizer.floor.is_known  # made before anybody waits, as in an ingress
    gc.collect()
    gc.freeze()  # as Serve does with what its replicas have loaded
    yield smollm2_tokenizer
    gc.unfreeze()


def application(tokenizer, num_tokens: int = 2):
    engines = Engines([100] * num_tokens, ENTRY)
    engines.events = RequestEvents()
    limits = ModelLimits(MAX_MODEL_LEN, tokenizer.vocab_size)
    service = OpenAiService(engines, tokenizer, "m", limits, MAX_CHOICES)
    return application_of(service, OPEN, None, MAX_CHOICES)


async def ask(app, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer; the request comes in pieces, as from a socket."""
    pieces = [body[begin : begin + 2**16] for begin in range(0, len(body), 2**16)]
    pieces.reverse()
    answer: list[dict] = []

    async def receive() -> dict:
        if not pieces:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def send(event: dict) -> None:
        answer.append(event)

    sent = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": ""}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in sent.items()]
    await app(scope, receive, send)
    return answer[0]["status"], b"".join(event.get("body", b"") for event in answer[1:])


def filled(head: str, piece: str, tail: str, joint: str = "", size: int = MAX_BYTES) -> bytes:
    """``head``, as many ``piece`` as there is room for with ``joint`` between them, and ``tail``."""
    begin, middle, end = head.encode(), (piece + joint).encode(), tail.encode()
    count = (size - len(begin) - len(end)) // len(middle)
    text = begin + middle * count
    return (text[: len(text) - len(joint)] if joint else text) + end


PROMPT, CHAT = "/v1/completions", "/v1/chat/completions"
USER = '{"messages":[{"role":"user","content":"x"}],'
IDS = ",".join(["1000"] * (MAX_MODEL_LEN - 16))
TEXT = "word and " * 900  # a prompt that fits

_MESSAGE = '{"messages":[{"role":"user","content":"'

BODIES = {
    "text": (PROMPT, lambda: filled('{"prompt":"', "hello world ", '"}')),
    "text that may fit, of spaces": (PROMPT, lambda: filled('{"prompt":"', " ", '"}', size=650_000)),
    "text that may fit, of letters": (PROMPT, lambda: filled('{"prompt":"', "qzjxkv", '"}', size=130_000)),
    "escaped text": (PROMPT, lambda: filled('{"prompt":"', "\\u4e2d", '"}')),
    "escaped line ends": (PROMPT, lambda: filled('{"prompt":"', "\\n", '"}')),
    "emoji": (PROMPT, lambda: filled('{"prompt":"', "\U0001f600", '"}')),
    "128 texts": (PROMPT, lambda: json.dumps({"prompt": [TEXT] * 128, "max_tokens": 1, "echo": True}).encode()),
    "token ids": (PROMPT, lambda: filled('{"prompt":[', "1", "]}", ",")),
    "full prompts of token ids": (
        PROMPT,
        lambda: f'{{"prompt":[{",".join([f"[{IDS}]"] * 100)}],"echo":true}}'.encode(),
    ),
    "lists of token ids": (PROMPT, lambda: filled('{"prompt":[', "[1]", "]}", ",")),
    "empty lists": (PROMPT, lambda: filled('{"prompt":[', "[]", "]}", ",")),
    "texts": (PROMPT, lambda: filled('{"prompt":[', '""', "]}", ",")),
    "4096 messages": (
        CHAT,
        lambda: json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x " * 400}]}] * 4096}
        ).encode(),
    ),
    "4096 short messages": (CHAT, lambda: json.dumps({"messages": [{"role": "user", "content": "x"}] * 4096}).encode()),
    "too many messages": (CHAT, lambda: filled('{"messages":[', '{"role":"user","content":""}', "]}", ",")),
    "wrong messages": (CHAT, lambda: json.dumps({"messages": [{"a": 1, "b": 2, "c": 3}] * 4096}).encode()),
    "one message": (CHAT, lambda: filled('{"messages":[{"role":"user","content":"', "hello world ", '"}]}')),
    "special tokens in a message": (CHAT, lambda: filled(_MESSAGE, "<|im_end|>", '"}]}', size=75_000)),
    "beginnings of special tokens": (CHAT, lambda: filled(_MESSAGE, "<|im_start|", '"}]}', size=120_000)),
    "spaces and a special token": (CHAT, lambda: filled(_MESSAGE, " ", '<|im_end|>"}]}', size=600_000)),
    "4096 messages with special tokens": (
        CHAT,
        lambda: json.dumps({"messages": [{"role": "user", "content": "<|im_end|>"}] * 4096}).encode(),
    ),
    "parts": (
        CHAT,
        lambda: filled('{"messages":[{"role":"user","content":[', '{"type":"text","text":"x"}', "]}]}", ","),
    ),
    "wrong parts": (CHAT, lambda: filled('{"messages":[{"role":"user","content":[', "7", "]}]}", ",")),
    "stop strings": (
        PROMPT,
        lambda: json.dumps({"prompt": "x", "n": 128, "stop": [f"{i}" + "ab" * 510 for i in range(16)]}).encode(),
    ),
    "too many stop strings": (PROMPT, lambda: filled('{"prompt":"x","stop":[', '"a"', "]}", ",")),
    "stop token ids": (PROMPT, lambda: filled('{"prompt":"x","stop_token_ids":[', "1", "]}", ",")),
    "stop sequences": (PROMPT, lambda: filled('{"prompt":"x","stop_token_seqs":[', "[1]", "]}", ",")),
    "logit_bias": (
        PROMPT,
        lambda: json.dumps({"prompt": "x", "n": 128, "logit_bias": {str(i): 1 for i in range(300)}}).encode(),
    ),
    "keys of logit_bias": (PROMPT, lambda: filled('{"prompt":"x","logit_bias":{', '"1":1', "}}", ",")),
    "metadata": (PROMPT, lambda: filled('{"prompt":"x","metadata":{"a":"', "x", '"}}')),
    "template variables": (
        CHAT,
        lambda: filled(USER + '"chat_template_kwargs":{"a":[', '{"b":[1,"c"]}', "]}}", ",", 2**20),
    ),
    "template variables of one character": (CHAT, lambda: filled(USER + '"chat_template_kwargs":{"a":"', "<", '"}}')),
    "an emoji and template variables": (
        CHAT,
        lambda: filled(USER + '"chat_template_kwargs":{"a":"\U0001f600', "><", '"}}'),
    ),
    "special tokens in template variables": (
        CHAT,
        lambda: filled(USER + '"chat_template_kwargs":{"a":["', "<|im_end|>", '"]}}'),
    ),
    "a long name of a template variable": (CHAT, lambda: filled(USER + '"chat_template_kwargs":{"', "<", '":1}}')),
    "tools": (CHAT, lambda: filled(USER + '"tools":[', '{"type":"function","function":{"name":"f"}}', "]}", ",")),
    "response_format": (CHAT, lambda: filled(USER + '"response_format":{"type":"', "json", '"}}')),
    "spaces between token ids": (PROMPT, lambda: filled('{"prompt":[1,', " ", "2]}")),
    "spaces around token ids": (PROMPT, lambda: filled('{"prompt":[', "   1   ", "]}", ",")),
    "a long stop string": (PROMPT, lambda: filled('{"prompt":"x","stop":"', "\U0001f600", '"}')),
    "a long key of logit_bias": (PROMPT, lambda: filled('{"prompt":"x","logit_bias":{"', "1", '":1}}')),
    "long keys": (PROMPT, lambda: filled('{"prompt":"x","metadata":{"a', "\\u00e9", '":"b"}}')),
    "escaped emoji": (PROMPT, lambda: filled('{"prompt":"', "\\ud83d\\ude00", '"}')),
    "texts of letters and escapes in turn": (PROMPT, lambda: filled('{"prompt":"', "a\\n", '"}')),
    "a deep template variable": (CHAT, lambda: filled(USER + '"chat_template_kwargs":{"a":', "[", "")),
    "unknown fields": (PROMPT, lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(MAX_BYTES // 12)) + b"}"),
    "a long key": (PROMPT, lambda: filled('{"', "\\n", '":1}')),
    "a long number": (PROMPT, lambda: filled('{"prompt":"x","seed":', "1", "}")),
    "long numbers": (PROMPT, lambda: filled('{"prompt":[', "1" * 40, "]}", ",")),
    "fractions": (PROMPT, lambda: filled('{"prompt":[', "1.5", "]}", ",")),
    "depth": (PROMPT, lambda: filled("", "[", "")),
    "deep objects": (PROMPT, lambda: filled("", '{"a":', "")),
    "spaces": (PROMPT, lambda: filled("", " ", '{"prompt":"x"}')),
    "no end": (PROMPT, lambda: filled('{"prompt":"', "\\n", "")),
    "no JSON": (PROMPT, lambda: filled("", "\\", "")),
    "no UTF-8": (PROMPT, lambda: b"\xff" * MAX_BYTES),
    "nulls": (PROMPT, lambda: filled('{"prompt":[', "null", "]}", ",")),
    "wrong model": (PROMPT, lambda: filled('{"prompt":"x","model":["', "x", '"]}')),
    "log-probabilities of a prompt": (
        PROMPT,
        lambda: json.dumps(
            {"prompt": TEXT, "n": 4, "logprobs": 20, "echo": True, "max_tokens": 1, "return_token_ids": True}
        ),
    ),
    "the same, streamed": (
        PROMPT,
        lambda: json.dumps({"prompt": TEXT, "n": 4, "prompt_logprobs": 20, "stream": True, "max_tokens": 1}),
    ),
    "log-probabilities for 128 answers": (
        PROMPT,
        lambda: json.dumps({"prompt": TEXT, "n": 128, "logprobs": 20, "echo": True}),
    ),
    "text to tokenize": ("/tokenize", lambda: filled('{"return_token_strs":true,"prompt":"', "hello world ", '"}')),
    "letters to tokenize": ("/tokenize", lambda: filled('{"return_token_strs":true,"prompt":"', "qzjxkv", '"}')),
    "messages to tokenize": (
        "/tokenize",
        lambda: filled('{"messages":[{"role":"user","content":"', "hello world ", '"}]}'),
    ),
    "tokens to detokenize": ("/detokenize", lambda: filled('{"tokens":[', "1", "]}", ",")),
    "wrong tokens to detokenize": ("/detokenize", lambda: filled('{"tokens":[', '"1"', "]}", ",")),
    "128 echoes": (PROMPT, lambda: json.dumps({"prompt": TEXT, "n": 128, "echo": True, "return_token_ids": True})),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_others_go_on_whatever_a_large_body_holds(kind, tokenizer):
    path, made = BODIES[kind]
    body, app = made(), application(tokenizer)
    async with Lag() as lag:
        begun = time.perf_counter()
        status, answer = await ask(app, path, body if isinstance(body, bytes) else body.encode())
        took = time.perf_counter() - begun
    print(
        f"{kind}: {status} after {took:.2f} s, longest turn {lag.own * 1e3:.0f} ms ({lag.clock * 1e3:.0f} by the clock)"
    )
    assert status in (200, 400), answer[:300]
    assert len(answer) < 1000 or status == 200
    assert lag.own < MAX_LAG_S
    assert large_requests.bytes_in_flight == 0


async def test_others_go_on_while_gzip_is_read(tokenizer):
    body = gzip.compress(filled('{"prompt":"', "hello world ", '"}', size=2**26))
    assert len(body) < MAX_BYTES
    async with Lag() as lag:
        status, _ = await ask(application(tokenizer), PROMPT, body, {"content-encoding": "gzip"})
    assert status == 413 and lag.own < MAX_LAG_S
    assert large_requests.bytes_in_flight == 0


@pytest.mark.parametrize("piece", ["<", "><", "<|im_end|>", "\\u2800<"])
@pytest.mark.parametrize("first", ["", "\U0001f600"])
async def test_others_go_on_though_the_template_reads_a_large_variable(first, piece, tokenizer):
    """Marks are put into it, whether it is shown or not."""
    reading = copy.copy(tokenizer)
    reading._template = ChatTemplate("{{ messages[0].content }}{% if a %}!{% endif %}", {}, "m")
    body = filled(USER + f'"chat_template_kwargs":{{"a":"{first}', piece, '"}}')
    async with Lag() as lag:
        status, answer = await ask(application(reading), CHAT, body)
    print(
        f"variable of {first}{piece}: {status}, longest turn {lag.own * 1e3:.0f} ms ({lag.clock * 1e3:.0f} by the clock)"
    )
    assert status == 200, answer[:300]
    assert lag.own < MAX_LAG_S


async def test_others_go_on_whatever_a_client_says_that_it_takes_up(tokenizer):
    """An id of an event that allows as large a body as there can be."""
    tenant = OPEN.check(None)
    point = ResumePoint("cmpl-" + "0" * 32, int(time.time()), MAX_CHOICES * MAX_MODEL_LEN, 0, 1, "x" * 16)
    event = {"last-event-id": EventIds(tenant.event_key).sign(point)}
    async with Lag() as lag:
        status, _ = await ask(application(tokenizer), PROMPT, filled("", " ", '{"prompt":"x"}', size=15 * 2**20), event)
    print(f"spaces: {status}, longest turn {lag.own * 1e3:.0f} ms ({lag.clock * 1e3:.0f} by the clock)")
    assert status == 400
    assert lag.own < MAX_LAG_S


@pytest.mark.parametrize("stream", [True, False])
async def test_others_go_on_while_a_client_takes_up_a_long_answer(stream, tokenizer):
    """As many tokens as its choices can have, with their places in the text; only a stream can be taken up."""
    count, choices = MAX_MODEL_LEN - 100, 16
    tokens = [{"token_ids": [1000] * count, "finish_reason": None}] * choices
    body = {"prompt": "x", "n": choices, "seed": 1, "stream": stream, "return_token_ids": True, "logprobs": 0}
    body |= {"stop": ["ab" * 500], "max_tokens": count + 50, "resume": {"fingerprint": "f", "choices": tokens}}
    raw = json.dumps(body).encode()
    tenant = OPEN.check(None)
    point = point_of(body, [tokenizer.encode("x")], tenant)
    event = {"last-event-id": EventIds(tenant.event_key).sign(point)}
    async with Lag() as lag:
        status, answer = await ask(application(tokenizer), PROMPT, raw, event)
    print(f"taken up: {status}, longest turn {lag.own * 1e3:.0f} ms ({lag.clock * 1e3:.0f} by the clock)")
    assert status == (200 if stream else 400), answer[:300]
    assert lag.own < MAX_LAG_S


async def test_chunks_of_many_choices_are_those_that_would_be_built_at_once(tokenizer):
    """Beside the event loop they are built choice by choice."""
    written = []
    for in_pieces in (False, True):
        engines = Engines([100, 101], ENTRY)
        service = OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
        body = {"prompt": ["x y", "z"], "n": 2, "prompt_logprobs": 3, "seed": 1, "logprobs": 2, "stream": True}
        generation, answer = await service.completion(body)
        answer._head |= {"id": "cmpl-0", "created": 1}
        written.append(EventStream(generation, answer, {}, True)._events(in_pieces, await generation.read()))
    assert written[0].count(b"data: {") == 4
    assert written[0] == written[1]


async def test_large_bodies_give_their_memory_back(tokenizer):
    app = application(tokenizer)
    body = filled('{"prompt":"', "qzjxkv", '"}', size=130_000)
    await ask(app, PROMPT, body)
    before = resident_bytes()
    text = filled('{"prompt":"', "hello world ", '"}')
    statuses = [status for status, _ in await asyncio.gather(*[ask(app, PROMPT, text) for _ in range(10)])]
    largest = resident_bytes()
    deadline = time.monotonic() + 10
    while resident_bytes() > before + 40 * 2**20 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    after = resident_bytes()
    print(f"resident: {before / 2**20:.0f} MiB before, {largest / 2**20:.0f} then, {after / 2**20:.0f} after")
    assert statuses == [400] * 8 + [429] * 2  # of one client
    assert after < before + 40 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_body_that_finds_no_room_is_told_to_come_back(tokenizer, monkeypatch):
    monkeypatch.setattr(large_requests, "_bytes", Counter({"another": 2**40}))
    status, answer = await ask(application(tokenizer), PROMPT, filled('{"prompt":"', "x", '"}', size=100_000))
    assert (status, json.loads(answer)["error"]["code"]) == (429, "overloaded")
    status, _ = await ask(application(tokenizer), PROMPT, b'{"prompt":"x"}')
    assert status == 200


async def test_only_so_many_large_bodies_wait_for_their_turn(tokenizer):
    ended = threading.Event()
    waiting = [asyncio.ensure_future(large_requests.prepare("", 1, ended.wait, 60)) for _ in range(256)]
    await asyncio.sleep(0)
    try:
        status, answer = await ask(application(tokenizer), PROMPT, filled('{"prompt":"', "x", '"}', size=10_000))
        assert (status, json.loads(answer)["error"]["code"]) == (429, "overloaded")
    finally:
        ended.set()
        await asyncio.gather(*waiting)
    status, _ = await ask(application(tokenizer), PROMPT, filled('{"prompt":"', "x ", '"}', size=10_000))
    assert status == 200


async def test_a_declared_length_that_is_too_large_is_refused_before_anything_is_read(tokenizer):
    status, answer = await ask(application(tokenizer), PROMPT, b"{", {"content-length": str(MAX_BYTES + 1)})
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(("path", "param"), [(PROMPT, "prompt"), (CHAT, "messages")])
async def test_a_text_that_cannot_fit_is_refused_without_encoding_it(path, param, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "encode", lambda *_, **__: pytest.fail("the text was encoded"))
    text = "hello world " * 100_000
    body = {"prompt": text} if path == PROMPT else {"messages": [{"role": "user", "content": text}]}
    status, answer = await ask(application(tokenizer), path, json.dumps(body).encode())
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("This model's maximum context length is 8192 tokens. However, ")


@pytest.mark.parametrize(
    ("max_model_len", "max_choices", "expected"),
    [
        (8192, 128, 2**22),
        (8192, 1, 2**20),
        (256, 128, 2**20),
        (2**17, 128, 2**22),
        (2**20, 1, 2**25),
        (2**17, 1, 2**22),
    ],
)
def test_the_default_size_of_a_body_follows_from_the_context(max_model_len, max_choices, expected):
    assert default_body_bytes(max_model_len, max_choices) == expected


@pytest.mark.parametrize("stream", [True, False])
async def test_others_go_on_while_a_slow_client_gets_what_has_gathered(stream, tokenizer):
    """Its 64 answers were made while it took nothing: a hundred thousand steps wait, each with one token."""
    num_steps, choices = 1500, 64
    engines = Engines([])
    engines.events = RequestEvents()

    def submit(entry, deliver, fail) -> SimpleNamespace:
        for i in range(num_steps):
            reason = FINISH_LENGTH if i == num_steps - 1 else None
            deliver(TokenDelta(entry.request_id, entry.attempt, i, [1000 + i], None, reason))
        return SimpleNamespace(entry=entry)

    engines.submit = submit
    gathered = OpenAiService(engines, tokenizer, "m", ModelLimits(MAX_MODEL_LEN, tokenizer.vocab_size), MAX_CHOICES)
    body = {"prompt": "x", "n": choices, "max_tokens": num_steps, "stream": stream, "stop": ["ab" * 500, "\n" * 40]}
    generation, answer = await gathered.completion(body)
    async with Lag() as lag:
        written = EventStream(generation, answer, {}, False) if stream else WholeAnswer(generation, answer)
        events: list[dict] = []

        async def send(event: dict) -> None:
            events.append(event)

        await written({"type": "http", "http_version": "1.1"}, asyncio.Event().wait, send)
    text = b"".join(event.get("body", b"") for event in events)
    print(f"gathered: {len(text)} bytes, longest turn {lag.own * 1e3:.0f} ms ({lag.clock * 1e3:.0f} by the clock)")
    assert text.count(b'"finish_reason":"length"') == choices
    assert lag.own < MAX_LAG_S
