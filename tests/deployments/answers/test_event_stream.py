"""What event streams look like on the wire: every reader that people use reads them, also through pauses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from openai import AsyncOpenAI

from cluster.outputs import FINISH_LENGTH
from deployments.answers import event_stream
from deployments.answers.event_stream import encode_events
from deployments.http.keys import ApiKeys
from deployments.openai_api.answers.answer import OpenAiResponse
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.http.server.listening import listening
from tests.deployments.ingress_without_ray import Connection, answered, application
from tests.deployments.played_engines import SlowEngines
from tests.sse_readers import DECODERS, READERS, SPLITTERS, Reader
from tests.waiting import until

RESUMABLE = (b"bireme-resumable", b"1")
# What splitters of lines take for line ends, a character of four bytes, and what JSON escapes itself.
TEXT = 'a\x85b\u2028c\u2029d🦜\x0b\x1c"\r\n\ne'
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
COMPLETION = ("/v1/completions", {"prompt": "x"})

# How a server may show that it is alive between two events, and which readers it costs an answer.
FORMS = {
    "a comment, blank line": (b": keep-alive\n\n", "", {"sglang_bench", "vllm_bench"}),
    "a comment": (b": keep-alive\n", "", {"dify", "sglang_bench", "vllm_bench", "unstripped_blocks"}),
    "one blank line": (b"\n", "", {"unstripped_blocks"}),
    "two blank lines": (b"\n\n", "", set()),
    "ids: a comment, blank line": (b": keep-alive\n\n", "after", {"openai_python", "httpx_sse", "langchain"}),
    "ids: two blank lines": (b"\n\n", "after", {"openai_python", "httpx_sse", "langchain"}),
    "ids: a comment": (b": keep-alive\n", "after", set()),
    "ids before data: nothing": (b"", "before", {reader.__name__ for reader in SPLITTERS}),
}


@pytest.fixture
def engines(monkeypatch) -> SlowEngines:
    monkeypatch.setattr(event_stream, "_KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(event_stream, "_LONGEST_KEEP_ALIVE_S", 0.03)
    return SlowEngines()


def lost_by(readers: list[Reader], pieces: list[bytes], expected: list[dict[str, Any]]) -> set[str]:
    """Those that do not read ``expected`` from ``pieces``, which arrive one by one or all at once."""
    lost = set()
    for reader in readers:
        for arriving in (pieces, [b"".join(pieces)]):
            found = None
            with contextlib.suppress(ValueError):
                found = reader(arriving)
            if found != expected:
                lost.add(reader.__name__)
    return lost


@pytest.mark.parametrize("form", FORMS)
def test_which_readers_a_sign_of_life_costs_an_answer(form):
    """Why streams look as they do: the two forms without a loss are the ones in use, one for clients that asked for ids."""
    alive, ids, costs = FORMS[form]
    objects = [{"choices": [{"index": 0, "text": text}]} for text in "abc"]
    pieces = []
    for item in objects:
        data, event_id = f"data: {json.dumps(item)}\n", "id: a:1\n" if ids else ""
        pieces += [((event_id + data if ids == "before" else data + event_id) + "\n").encode(), alive, alive]
    pieces = [piece for piece in [alive, *pieces, b"data: [DONE]\n\n"] if piece]
    # Who asks for ids knows them.
    readers = DECODERS if ids == "after" else READERS
    assert lost_by(readers, pieces, objects) == costs


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
@pytest.mark.parametrize("end", ["length", "error"])
async def test_every_reader_reads_a_stream_that_pauses(engines, path, body, resumable, end):
    options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    connection = Connection(path, {**body, **options, "max_tokens": 60})
    if resumable:
        connection.scope["headers"].append(RESUMABLE)
    task = await answered(engines, connection)
    tokens = byte_tokenizer().encode(TEXT)
    silences = 0
    for part in (tokens[:5], tokens[5:-1]):
        silences = await silent(connection, silences)
        engines.deliver(part)
        await until(lambda: b"data: {" in connection.events[-1]["body"], 20)
    await silent(connection, silences)
    if end == "length":
        engines.deliver(tokens[-1:], FINISH_LENGTH)
    else:
        engines.fail(event_stream.ApiError(503, "gone", code="engine_dead"))
    await task

    pieces = [event["body"] for event in connection.events[1:]]
    lines = b"".join(pieces).decode().split("\n")
    expected = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lost_by(DECODERS if resumable else READERS, pieces, expected) == set()
    assert any(line.startswith("id: ") for line in lines) == resumable
    headers = dict(connection.events[0]["headers"])
    assert (b"bireme-max-silence" in headers) == resumable
    if end == "error":
        assert expected[-1]["error"]["code"] == "engine_dead"
        return
    choices = [chunk["choices"][0] for chunk in expected[:-1]]
    assert "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices) == TEXT
    assert expected[-1]["usage"]["completion_tokens"] == len(tokens)


def text_of_events(body: bytes) -> str:
    choices = [json.loads(data)["choices"][0] for data in re.findall(rb"^data: ({.*)$", body, re.MULTILINE)]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
@pytest.mark.parametrize("options", [{}, {"return_token_ids": True}, {"stop": ["zzz"]}, {"logprobs": None}])
async def test_events_that_are_written_at_once_are_those_that_are_built_whole(
    monkeypatch, path, body, resumable, options
):
    """Byte for byte, in the order of the tokens, whoever writes them; also where a client takes nothing for a while."""
    monkeypatch.setattr("deployments.openai_api.answers.answer.uuid.uuid4", lambda: SimpleNamespace(hex="0" * 32))
    monkeypatch.setattr("deployments.openai_api.answers.answer.time.time", lambda: 1e9)
    monkeypatch.setattr("deployments.openai_api.service.time.time", lambda: 1e9)
    # Some of these are parts of characters, which have no text of their own.
    monkeypatch.setattr("tests.deployments.ingress_without_ray.ApiKeys", lambda keys: keys_of_one_secret)
    keys_of_one_secret, is_plain = ApiKeys([]), OpenAiResponse.is_plain
    tokens, at_once, bodies = byte_tokenizer().encode(TEXT), [], []
    for quick, congested in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(OpenAiResponse, "is_plain", is_plain if quick else lambda self, index: False)
        connection = Connection(path, {**body, **options, "stream": True, "max_tokens": 60, "seed": 1})
        if resumable:
            connection.scope["headers"].append(RESUMABLE)
        send = connection.send

        async def slowly(event, send=send):
            await asyncio.sleep(0.001)
            await send(event)

        if congested:
            connection.send = slowly
        engines = SlowEngines()
        task = await answered(engines, connection)
        for i, token in enumerate(tokens):
            num_events = len(connection.events)
            engines.deliver([token], FINISH_LENGTH if i == len(tokens) - 1 else None)
            at_once.append(quick and len(connection.events) > num_events)
            if i == 0:  # the stream has begun, and waits for more
                await until(lambda connection=connection: len(connection.events) > 1, 20)
            if not congested:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        await task
        bodies.append(connection.body)
    assert bodies[1] == bodies[0]
    assert list(map(text_of_events, bodies)) == [TEXT] * 3
    assert any(at_once) == ("stop" not in options), "no event left with its token"


async def test_what_fails_at_once_fails_its_own_request_alone(engines, monkeypatch):
    """Tokens are handed out in one loop over all requests."""
    connection = Connection(COMPLETION[0], {**COMPLETION[1], "stream": True, "max_tokens": 60})
    task = await answered(engines, connection)
    tokens = byte_tokenizer().encode("abc")
    engines.deliver(tokens[:1])
    await until(lambda: connection.body.count(b"data: ") == 1, 20)
    await asyncio.sleep(0)

    def fail(*arguments):
        raise KeyError

    monkeypatch.setattr(event_stream.EventStream, "_plain_event", fail)
    engines.deliver(tokens[1:2])
    await asyncio.wait_for(task, 20)
    assert json.loads(connection.body.split(b"data: ")[-2])["error"]["code"] == "internal_error"
    assert connection.body.endswith(b"data: [DONE]\n\n")


async def test_work_that_is_begun_goes_on_where_it_waits():
    steps, go_on = [], asyncio.Event()

    async def work(waits: bool, fails: bool) -> None:
        steps.append("begun")
        if waits:
            await asyncio.sleep(0)
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                steps.append("cancelled")
                raise
        if fails:
            raise ValueError
        steps.append("done")

    assert event_stream.begin(work(False, False)) is None
    assert steps == ["begun", "done"]
    for waits in (False, True):
        go_on.clear()
        task = event_stream.begin(work(waits, True))
        assert task is not None
        await asyncio.sleep(0.01)
        assert task.done() != waits
        go_on.set()
        with pytest.raises(ValueError):
            await task
    go_on.clear()
    task = event_stream.begin(work(True, False))
    await asyncio.sleep(0.01)
    assert not task.cancelled() and steps[-1] == "begun"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps[-1] == "cancelled"


async def test_an_event_that_is_written_at_once_costs_much_less(monkeypatch):
    """CPU time from a delta to its ASGI message, against that of the long way, which wakes a task and builds a chunk."""
    is_plain, token_ids = OpenAiResponse.is_plain, byte_tokenizer().encode("abc")
    spent_s: dict[bool, list[float]] = {True: [], False: []}
    for quick in [True, False] * 6:
        monkeypatch.setattr(OpenAiResponse, "is_plain", is_plain if quick else lambda self, index: False)
        engines = SlowEngines()
        task = await answered(engines, Connection(COMPLETION[0], {**COMPLETION[1], "stream": True, "max_tokens": 60}))
        engines.deliver(token_ids[:1])
        await asyncio.sleep(0.01)
        begun = time.thread_time()
        for _ in range(40):
            engines.deliver(token_ids[:1])
            await asyncio.sleep(0)
        spent_s[quick].append(time.thread_time() - begun)
        engines.deliver(token_ids[:1], FINISH_LENGTH)
        await task


@pytest.mark.parametrize("resumable", ["0", "1"])
async def test_the_openai_client_reads_a_stream_whose_engine_pauses(engines, resumable):
    tokens = byte_tokenizer().encode(TEXT)
    text = ""
    async with (
        listening(application(engines)) as served,
        AsyncOpenAI(
            base_url=f"http://127.0.0.1:{served.port}/v1", api_key="unused", max_retries=0, timeout=20
        ) as client,
    ):
        stream = await client.completions.create(
            model="m", prompt="x", max_tokens=60, stream=True, extra_headers={"Bireme-Resumable": resumable}
        )
        for begin in range(0, len(tokens), 8):
            part = tokens[begin : begin + 8]
            # Five signs of life.
            await asyncio.sleep(0.15)
            engines.deliver(part, FINISH_LENGTH if begin + 8 >= len(tokens) else None)
            text += (await stream.__anext__()).choices[0].text
        assert [chunk async for chunk in stream] == []
    assert text == TEXT


async def silent(connection: Connection, before: int) -> int:
    """Number of signs of life, once there are three more than before."""

    def count() -> int:
        return sum(b"data: " not in event["body"] for event in connection.events[1:])

    await until(lambda: count() >= before + 3, 20)
    return count()


def test_who_was_promised_nothing_is_told_so_rarely_that_nobody_counts_to_300():
    """A reader that counts lines without data gives up then; a long queue must not be too long for it."""
    pauses = [event_stream._KEEP_ALIVE_S]
    while len(pauses) < 149:
        pauses.append(event_stream.longer(pauses[-1]))
    assert sum(pauses) > 20 * 60, "seconds in which 298 blank lines are written"
    assert max(pauses) < 15, "proxies close a connection that is silent for long"


@pytest.mark.parametrize("resumable", [False, True])
async def test_silence_grows_only_where_nothing_was_promised(engines, monkeypatch, resumable):
    monkeypatch.setattr(event_stream, "_LONGEST_KEEP_ALIVE_S", 1.0)
    connection = Connection("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 1})
    if resumable:
        connection.scope["headers"].append(RESUMABLE)
    task = await answered(engines, connection)
    begun = time.monotonic()
    await silent(connection, 6)
    took_s = time.monotonic() - begun
    engines.deliver([65], FINISH_LENGTH)
    await task
    # Nine times 0.02 s, or 0.02 s growing by half each time.
    assert resumable or took_s > 0.8


@pytest.mark.parametrize("header", [b"yes", b"2", b""])
async def test_a_wrong_header_is_refused_by_name(engines, header):
    connection = Connection("/v1/completions", {"prompt": "x", "stream": True})
    connection.scope["headers"].append((RESUMABLE[0], header))
    await application(engines)(connection.scope, connection.receive, connection.send)
    error = json.loads(connection.body)["error"]
    assert (connection.events[0]["status"], error["param"]) == (400, "bireme-resumable")
    assert "0 or 1" in error["message"]


def test_a_line_end_in_the_text_is_none_in_the_stream():
    body = encode_events([{"text": TEXT}]).decode()
    assert body.splitlines() == [body.removesuffix("\n\n"), ""]
    assert json.loads(body[6:]) == {"text": TEXT}
