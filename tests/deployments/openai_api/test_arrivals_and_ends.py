"""Every sequence that is counted as asked for is counted as ended once, whatever became of its request; all at the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cluster.api_errors import ApiError, overloaded
from cluster.outputs import FINISH_ABORT, FINISH_LENGTH
from deployments.http.connection import ClientGoneError, Peer
from deployments.http.large_requests import SMALL_BYTES
from deployments.metrics.ingress_metrics import FINISH_ERROR, IngressMetrics
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.openai_api.points import point_of
from tests.deployments.played_engines import Engines, SlowEngines

PROMPT_TOKENS = len(byte_tokenizer().encode("by"))


def service_of(engines: Engines) -> OpenAiService:
    tokenizer = byte_tokenizer()
    return OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 8)


def body_of(is_large: bool) -> Any:
    text = b'{"prompt": ["by", "by"], "n": 3, "max_tokens": 2}'
    return bytearray(text + b" " * (SMALL_BYTES if is_large else 0))


def arrived(metrics: IngressMetrics) -> int:
    return metrics.load(0, 0).num_arrived


def refuse(engines: Engines, at_look: int) -> None:
    """There is room until somebody has looked so often."""
    looks = iter(range(100))

    def check_room(num_sequences: int, tenant: str = "") -> None:
        if next(looks) == at_look:
            raise overloaded("full", 1)

    engines.check_room = check_room  # type: ignore[method-assign]


@pytest.fixture
def counted_on(monkeypatch) -> set[threading.Thread]:
    """The threads that counted anything."""
    threads: set[threading.Thread] = set()
    for name in ("count_arrivals", "count_end", "count_params", "count_refused", "observe"):
        count = getattr(IngressMetrics, name)

        def counting(*args, count=count, **kwargs):
            threads.add(threading.current_thread())
            return count(*args, **kwargs)

        monkeypatch.setattr(IngressMetrics, name, counting)
    return threads


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("at_look", [0, 1], ids=["before it is encoded", "when it starts"])
async def test_what_is_refused_came_and_ended(is_large, at_look, counted_on):
    engines = Engines([1, 2])
    refuse(engines, at_look)
    with pytest.raises(ApiError, match="full") as caught:
        await service_of(engines).completion(body_of(is_large))
    metrics = engines.metrics
    assert caught.value.status == 429 and arrived(metrics) == 6 and metrics.totals.ended == {FINISH_ABORT: 6}
    assert metrics.load(0, 0).prompt_tokens_per_s == pytest.approx(6 * PROMPT_TOKENS / 2, rel=0.2)
    assert counted_on == {threading.main_thread()}


@pytest.mark.parametrize("is_large", [False, True])
async def test_what_is_answered_came_and_ended(is_large, counted_on):
    engines = Engines([1, 2])
    generation, _ = await service_of(engines).completion(body_of(is_large))
    assert arrived(engines.metrics) == 6 and not engines.metrics.totals.ended
    while not generation.finished:
        await generation.read()
    generation.close()
    totals = engines.metrics.totals
    assert totals.ended == {FINISH_LENGTH: 6} and arrived(engines.metrics) == 6
    assert (sum(totals.max_tokens.counts), totals.num_choices.total) == (2, 6), "one a prompt"
    assert counted_on == {threading.main_thread()}


@pytest.mark.parametrize(("status", "reason"), [(0, FINISH_ABORT), (429, FINISH_ABORT), (503, FINISH_ERROR)])
async def test_what_is_left_or_given_up_came_and_ended(status, reason):
    engines = SlowEngines()
    generation, _ = await service_of(engines).completion(body_of(False))
    if status:
        generation.fail(ApiError(status, "over"))
    generation.close()
    generation.close()
    assert arrived(engines.metrics) == 6 and engines.metrics.totals.ended == {reason: 6}


async def test_a_client_that_leaves_before_its_request_is_read_asked_for_nothing(monkeypatch):
    engines, is_read, goes_on = Engines([1, 2]), threading.Event(), threading.Event()
    made = service_of(engines)

    def prepare(*args):
        result = OpenAiService._completion(made, *args)
        is_read.set()
        goes_on.wait(10)
        return result

    async def receive():
        await asyncio.to_thread(is_read.wait, 10)
        return {"type": "http.disconnect"}

    monkeypatch.setattr(made, "_completion", prepare)
    with pytest.raises(ClientGoneError):
        await made.completion(body_of(True), Caller(peer=Peer("somebody", receive)))
    goes_on.set()
    assert arrived(engines.metrics) == 0 and not engines.metrics.totals.ended


@pytest.mark.parametrize("num_ended", [1, 2])
async def test_of_an_answer_that_is_taken_up_what_had_ended_is_not_asked_for_again(num_ended):
    engines = Engines([1, 2])
    engines.events = RequestEvents()
    body = {"prompt": "by", "n": 2, "seed": 1, "stream": True, "return_token_ids": True}
    ended = [{"token_ids": [1], "finish_reason": "stop"}] * num_ended
    body["resume"] = {"fingerprint": "f", "choices": ended + [{"token_ids": [1]}] * (2 - num_ended)}
    point = point_of(body, [byte_tokenizer().encode("by")])
    generation, _ = await service_of(engines).completion(body, Caller(resumed=point))
    while not generation.finished:
        await generation.read()
    generation.close()
    assert arrived(engines.metrics) == engines.metrics.totals.ended.total() == 2 - num_ended
    engines.metrics.tell()


async def test_what_is_no_request_asked_for_nothing():
    engines = Engines([1, 2])
    with pytest.raises(ApiError):
        await service_of(engines).completion({"prompt": "by", "n": 9})
    assert arrived(engines.metrics) == 0 and not engines.metrics.totals.ended
