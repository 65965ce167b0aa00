"""The quick way of tokens into a stream beside the slow one: what a client gets, and what the ingress notes, is the same."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from cluster.outputs import FINISH_LENGTH, PlainTokens, TokenDelta
from deployments.answers import event_stream, token_lanes
from deployments.answers.chunk_template import ChunkTemplate
from deployments.answers.token_lanes import TokenLanes, encoded
from deployments.http.server.direct_writes import WritingCycle
from deployments.http.server.set_up import install_cycle
from deployments.metrics.request_events import RequestEvents
from deployments.native import step_writer
from deployments.native.step_writer import LoopStepWriter, native_module, one_step
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import OpenAiService
from deployments.routing.delivery import Delivery
from deployments.routing.departures import Departures
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from tests.actors.text.tiny_tokenizer import byte_tokenizer, sentencepiece_tokenizer
from tests.deployments.ingress_without_ray import application_of
from tests.deployments.played_engines import Engines
from tests.waiting import until

TOKENIZERS = {"bytes": byte_tokenizer(), "sentencepiece": sentencepiece_tokenizer()}
# Line ends that JSON does not escape, what it does, characters of two to four bytes.
TEXT = 'ab "c"\\ \n\t\x00\x1f\x7f é\x85\u2028\u2029🦜日本'
ENDPOINTS = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}


class Stream:
    """What submissions and delivery ask of an engine's token stream."""

    fingerprint, engine_id = "f", "e"

    def unwanted(self, delta: TokenDelta) -> bool:
        return False


class Scripted(Engines):
    """Engines whose messages a test says, on the way that an engine's take."""

    def __init__(self) -> None:
        super().__init__([])
        self.submissions = Submissions(EngineChoices())
        self.begun: list[Submission] = []
        self.stream: Any = Stream()
        self.delivery = Delivery(self.submissions, Departures(), RequestEvents())

    def submit(self, entry, deliver, fail):
        submission = Submission(entry, deliver, fail)
        self.submissions.open(submission)
        self.begun.append(submission)
        return submission

    def cancel(self, submission):
        self.submissions.close(submission)

    def say(self, steps: list[dict[int, int]], as_deltas: frozenset[int] = frozenset(), end: bool = False) -> None:
        """One message of the next tokens of some sequences, a step each."""
        with one_step():
            for step in steps:
                plain, deltas = PlainTokens.none(), []
                for number, token in step.items():
                    entry = self.begun[number].entry
                    told = entry.request_id, entry.attempt, entry.next_index
                    if end or number in as_deltas or not entry.next_index:
                        deltas.append(TokenDelta(*told, [token], finish_reason=FINISH_LENGTH if end else None))
                    else:
                        for column, value in zip(plain, (*told, token)):
                            column.append(value)
                self.delivery.take_plain(self.stream, plain)
                for delta in deltas:
                    self.delivery.take(self.stream, delta)


class Served:
    """An ingress's side of one connection, and the client's."""

    def __init__(self, engines: Scripted, tokenizer: Any) -> None:
        service = OpenAiService(engines, tokenizer, "m", ModelLimits(100_000, tokenizer.vocab_size), 4)
        self.config = uvicorn.Config(application_of(service), lifespan="off", log_config=None)
        self.config.load()
        self.got = bytearray()

    async def ask(self, path: str, body: dict[str, Any]) -> None:
        ours, self.side = socket.socketpair()
        self.side.setblocking(False)
        protocol = httptools_impl.HttpToolsProtocol(self.config, ServerState(), {})
        self.transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
        sent = json.dumps({**body, "stream": True, "seed": 1}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        self.side.sendall(head.encode() + sent)

    def read(self) -> bytes:
        while True:
            try:
                data = self.side.recv(1 << 16)
            except BlockingIOError:
                return bytes(self.got)
            if not data:
                return bytes(self.got)
            self.got += data


@pytest.fixture(autouse=True)
def cycle(monkeypatch) -> None:
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", httptools_impl.RequestResponseCycle)
    install_cycle()
    assert native_module() is not None


def without_lanes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(token_lanes, "native_module", lambda: None)
    patch.setattr(step_writer, "_of_thread", SimpleNamespace(writer=LoopStepWriter()))


def constant(patch: pytest.MonkeyPatch) -> None:
    """Answers always begin at the same time."""
    for module in ("openai_api.answers.answer", "openai_api.service"):
        patch.setattr(f"deployments.{module}.time.time", lambda: 1e9)


async def _answer(case: dict[str, Any], num_quick: list[int]) -> list[Any]:
    engines = Scripted()
    served = Served(engines, TOKENIZERS[case["tokenizer"]])
    num_choices = case["n"]
    await served.ask(case["path"], {**ENDPOINTS[case["path"]], **case["options"], "n": num_choices, "max_tokens": 60})
    await until(lambda: len(engines.begun) == num_choices, 3)
    seen: list[Any] = []
    for steps, as_deltas, pauses in case["messages"]:
        engines.say([{number % num_choices: token for number, token in step.items()} for step in steps], as_deltas)
        seen.append([list(submission.entry.output_token_ids) for submission in engines.begun])
        for _ in range(3 * pauses):
            await asyncio.sleep(0)
    num_quick.append(_num_quick(engines))
    engines.say([dict.fromkeys(range(num_choices), 65)], end=True)
    await until(lambda: served.read().endswith(b"\r\n0\r\n\r\n"), 3)
    got = re.sub(rb"cmpl-[0-9a-f]{32}", b"cmpl-id", bytes(served.got))
    served.transport.abort()
    served.side.close()
    await asyncio.sleep(0)
    totals = engines.metrics.totals
    return [seen, got, sum(totals.between_tokens.counts), sum(totals.generation_tokens.counts)]


def _num_quick(engines: Scripted) -> int:
    return sum(type(submission.deliver_token).__name__ == "builtin_function_or_method" for submission in engines.begun)


_ids = st.one_of(
    st.sampled_from(TOKENIZERS["bytes"].encode(TEXT)),
    st.integers(0, TOKENIZERS["bytes"].vocab_size + 3),
    st.integers(60, 99),
)
_step = st.dictionaries(st.integers(0, 2), _ids, max_size=3)
_message = st.tuples(
    st.lists(_step, min_size=1, max_size=3), st.frozensets(st.integers(0, 2), max_size=1), st.integers(0, 2)
)
_cases = st.fixed_dictionaries(
    {
        "tokenizer": st.sampled_from(sorted(TOKENIZERS)),
        "path": st.sampled_from(sorted(ENDPOINTS)),
        "n": st.integers(1, 3),
        "options": st.sampled_from(
            [
                {},
                {"return_token_ids": True},
                {"skip_special_tokens": False},
                {"stop": ["zzz"]},
                {"stream_options": {"include_usage": True}},
                {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            ]
        ),
        "messages": st.lists(_message, max_size=14),
    }
)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_cases)
def test_both_ways_give_a_client_the_same_bytes_and_the_journal_the_same_tokens(run, case):
    found, num_quick = [], []
    for quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            constant(patch)
            if not quick:
                without_lanes(patch)
            found.append(run(_answer(case, num_quick)))
    assert found[0] == found[1]
    assert num_quick[1] == 0


class Kept(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.kept = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.kept += data


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\x00\x85\u2028\u2029'), min_size=1)
    ),
    st.booleans(),
)
def test_a_lane_writes_any_text_as_the_template_does(texts, with_ids):
    """Tokens of large vocabularies are whole words, line ends among them."""

    def chunk(text: str, ids: list[int]) -> dict[str, Any]:
        return {"é\u2028": 1, "text": text, **({"ids": ids} if with_ids else {}), "last": None}

    native, transport, template = native_module(), Kept(), ChunkTemplate(chunk)
    assert native is not None
    outlet = native.StepWriter().outlet(transport, SimpleNamespace(write_paused=False), -1)
    choice: Any = SimpleNamespace(
        index=0,
        num_sent=0,
        submission=SimpleNamespace(),
        times=SimpleNamespace(arrived=lambda has_tokens: None),
        output=SimpleNamespace(is_plain=True, takes_whole_texts=True, grown=([], [])),
    )
    answer: Any = SimpleNamespace(
        is_plain=lambda index: True, plain_template=lambda index: template, whole_text=lambda token: texts[token]
    )
    slow: list[int] = []
    writer: Any = SimpleNamespace(chunk_outlet=outlet)
    lanes = TokenLanes(native, [choice], lambda choice, index, token: slow.append(token), answer, writer)
    lanes.open()
    expected = b""
    for token, text in enumerate(texts):
        choice.submission.deliver_token(token, token)
        event = encoded(f"data: {template.write(text, [token])}\n\n")
        expected += b"%x\r\n%b\r\n" % (len(event), event)
    assert (transport.kept, slow) == (expected, [])
    assert choice.output.grown == (list(range(len(texts))), texts)
    assert not texts or choice.num_sent == len(texts)
    lanes.close()
    if texts:
        choice.submission.deliver_token(len(texts), 0)
        assert slow == [0]


async def _begun(path: str = "/v1/completions", **options: Any) -> tuple[Scripted, Served]:
    """An answer that waits for its second token."""
    engines = Scripted()
    served = Served(engines, TOKENIZERS["bytes"])
    await served.ask(path, {**ENDPOINTS[path], "max_tokens": 60_000, **options})
    await until(lambda: bool(engines.begun), 20)
    engines.say([{0: 65}])
    await until(lambda: b"data: {" in served.read(), 20)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return engines, served


def _text(body: bytes) -> str:
    events = re.findall(rb"data: (\{.*)\n", body)
    return "".join(json.loads(event)["choices"][0].get("text", "") for event in events)


async def test_a_token_takes_the_quick_way_and_one_that_is_part_of_a_character_does_not(monkeypatch):
    engines, served = await _begun()
    slow: list[bytes] = []
    write = WritingCycle.write
    monkeypatch.setattr(WritingCycle, "write", lambda self, body: slow.append(body) or write(self, body))
    parrot = TOKENIZERS["bytes"].encode("🦜")
    for token in (66, *parrot, 67):
        engines.say([{0: token}])
    assert [_text(body) for body in slow] == ["🦜"]
    assert _text(served.read()) == TOKENIZERS["bytes"].decode([65, 66, *parrot, 67])
    served.transport.abort()


async def test_a_client_that_does_not_read_is_sent_little_and_all_of_it_once_it_reads():
    """What does not fit waits as tokens, not as chunks: those take a hundred times as much."""
    engines, served = await _begun()
    for _ in range(6_000):
        engines.say([{0: 66}])
        await asyncio.sleep(0)
    assert served.transport.get_write_buffer_size() < 100_000
    assert engines.begun[0].entry.next_index == 6_001
    engines.say([{0: 67}], end=True)
    await until(lambda: served.read().endswith(b"\r\n0\r\n\r\n"), 20)
    chunks = re.split(rb"\r\n[0-9a-f]+\r\n", bytes(served.got))
    assert _text(b"\n".join(chunks)) == "b" + "c" * 6_000 + "d"
    served.transport.abort()


async def test_a_client_that_goes_away_ends_its_own_answer_alone():
    (engines, served), (others, other) = await _begun(), await _begun()
    served.side.close()
    for number in range(20):
        for each in (engines, others):
            if each.submissions:
                each.say([{0: 66}])
        await asyncio.sleep(0.001 * (number % 3))
    await until(lambda: not engines.submissions, 20)
    assert _text(other.read()) == "b" + "c" * 20
    other.transport.abort()


async def test_a_stream_that_is_written_the_quick_way_is_not_silent(monkeypatch):
    monkeypatch.setattr(event_stream, "_KEEP_ALIVE_S", 0.6)
    engines, served = await _begun()
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        engines.say([{0: 66}])
        await asyncio.sleep(0.01)
    assert b"\r\n\n\n" not in served.read()
    await until(lambda: b"\r\n\n\n" in served.read(), 20)
    served.transport.abort()


async def test_an_engine_that_is_lost_leaves_the_journal_at_the_last_token_that_was_sent():
    engines, served = await _begun()
    (submission,) = engines.begun
    engines.say([{0: 66}, {0: 67}])
    assert submission.entry.resume_request().output_token_ids == [65, 66, 67]
    # Tokens of the attempt before are nobody's any more.
    stale = PlainTokens([submission.entry.request_id], [0], [3], [68])
    engines.delivery.take_plain(engines.stream, stale)
    engines.submissions.displace(submission)
    engines.delivery.take(engines.stream, TokenDelta(submission.entry.request_id, 1, 3, [69]))
    await asyncio.sleep(0.01)
    engines.say([{0: 70}])
    await until(lambda: _text(served.read()).endswith("g"), 20)
    assert _text(served.read()) == "bcdfg"
    served.transport.abort()


async def test_all_answers_share_one_table_of_texts():
    token_lanes._texts.cache_clear()
    for _ in range(3):
        engines, served = await _begun()
        engines.say([{0: 66}])
        served.transport.abort()
    assert token_lanes._texts.cache_info().misses == 1


async def test_what_an_answer_held_is_freed_with_it():
    engines, served = await _begun()
    engines.say([{0: 66}])
    gone = weakref.ref(engines.begun[0])
    engines.say([{0: 67}], end=True)
    await until(lambda: served.read().endswith(b"\r\n0\r\n\r\n"), 20)
    served.transport.abort()
    await asyncio.sleep(0.01)
    engines.begun.clear()
    gc.collect()
    assert gone() is None
