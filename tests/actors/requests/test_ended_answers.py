"""Ended answers are told again as they were said, take few bytes, and cost nothing until it is their time."""

from __future__ import annotations

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.requests import ended_answers
from actors.requests.ended_answers import EndedAnswers, Said
from actors.requests.live_requests import LiveRequests
from cluster.outputs import FINISH_HANDOVER, TokenDelta, TokenLogprobs
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

TOKENS = st.integers(0, 300_000)
LOGPROBS = st.builds(
    TokenLogprobs,
    st.floats(max_value=0, allow_nan=False),
    st.integers(1, 300_000),
    st.lists(TOKENS, max_size=3),
    st.lists(st.floats(allow_nan=False), max_size=3),
)


@st.composite
def said(draw, name: str = "a") -> Said:
    """Plain tokens, and now and then a delta that says more of one or two."""
    num_begun, deltas = draw(st.integers(0, 3)), []
    answer = draw(st.lists(TOKENS, min_size=num_begun, max_size=12))
    index = num_begun
    while index < len(answer):
        count = draw(st.integers(0, min(2, len(answer) - index)))
        if count:
            tokens = answer[index : index + count]
            logprobs = draw(st.none() | st.lists(LOGPROBS, min_size=count, max_size=count))
            prompt = draw(st.none() | st.just([None, TokenLogprobs(-0.1, 2, [4], [-0.2])]))
            deltas.append(TokenDelta(name, 0, index, tokens, logprobs, num_cached_tokens=count, prompt_logprobs=prompt))
        index += max(count, 1)
    stop = draw(st.sampled_from([None, 7, [7, 8]]))
    deltas.append(TokenDelta(name, 0, len(answer), [], finish_reason="stop", matched_stop=stop))
    prompt_ids = draw(st.lists(TOKENS, max_size=3))
    ahead = draw(st.lists(TOKENS, max_size=2))  # in the engine's list, and not said
    return Said(name, 0, deltas, num_begun, len(answer), [*prompt_ids, *answer, *ahead], len(prompt_ids))


@given(said=said(), index=st.integers(0, 14))
def test_an_answer_is_told_again_as_it_was_said(said, index):
    assert Said.decoded(said.encoded()).following(index) == said.following(index)


STEPS = st.one_of(
    st.tuples(st.just("end"), st.sampled_from("abcdef"), st.integers(0, 30)),
    st.tuples(st.just("discard"), st.sampled_from("abcdef"), st.none()),
    st.tuples(st.just("wait"), st.none(), st.integers(0, 40)),
)


def answer(name: str, length: int) -> Said:
    return Said(name, 0, [TokenDelta(name, 0, length, [], finish_reason="stop")], 0, length, [5] * length, 0)


@given(steps=st.lists(STEPS, max_size=40), limit=st.integers(0, 300))
def test_the_oldest_lose_their_words_and_none_is_forgotten_before_its_time(steps, limit):
    with pytest.MonkeyPatch.context() as patch:
        now = 1000.0
        patch.setattr(ended_answers, "time", SimpleNamespace(monotonic=lambda: now))
        patch.setattr(ended_answers, "MAX_KEPT_BYTES", limit)
        ended, here = EndedAnswers(), {}
        for kind, name, value in steps:
            if kind == "wait":
                now += value
                due = [key for key, (at, _) in here.items() if at < now - ended_answers.RETENTION_S]
                assert set(ended.old()) == set(due)
                for key in due:
                    ended.discard(key)
                    del here[key]
            elif kind == "discard":
                ended.discard((name, 0))
                here.pop((name, 0), None)
            elif (name, 0) not in here:
                ended.add("s", answer(name, value))
                here[name, 0] = now, answer(name, value)
            assert len(ended) == len(here) and all(key in ended and ended.subscriber(key) == "s" for key in here)
            assert ended.num_bytes == sum(len(one.words) for one in ended._kept.values()) <= limit
            told = {key: ended.following(key, "s", 1) for key in here}
            has_words = [told[key] == here[key][1].following(1) for key in here]
            assert has_words == sorted(has_words), "those without are the oldest"
            handed_over = [[TokenDelta(*key, 1, [], finish_reason=FINISH_HANDOVER)] for key in here]
            count = has_words.count(False)
            assert list(told.values())[:count] == handed_over[:count]
            assert not any(ended.following(key, "other", 0) for key in here)
            assert ended.subscriber(("none", 0)) is None and ended.following(("none", 0), "s", 0) == []


def test_only_what_may_be_due_is_looked_at(monkeypatch):
    looked_at = 0

    class Time(float):
        def __ge__(self, other: float) -> bool:
            nonlocal looked_at
            looked_at += 1
            return float(self) >= other

    now = 1000.0
    monkeypatch.setattr(ended_answers, "time", SimpleNamespace(monotonic=lambda: Time(now)))
    ended = EndedAnswers()
    for number in range(500):
        now += 1
        ended.add("s", answer(str(number), 3))
    now = 1000 + 10 + ended_answers.RETENTION_S + 0.5
    assert [int(name) for name, _ in ended.old()] == list(range(10))
    assert looked_at == 11


def test_an_ended_answer_is_few_bytes_however_long_its_prompt():
    count = 50

    async def end_some() -> int:
        live, loop = LiveRequests(), asyncio.get_running_loop()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            made = EngineRequest(str(number), [1000 + i for i in range(8000)], SamplingParams(), subscriber="s")
            live.open(made, loop.create_future()).follow([*made.prompt_token_ids, *range(1000, 1256)])
            del made
            live.deliver(TokenDelta(str(number), 0, 255, [1255], finish_reason="length"))
        (told,) = live.missing("s", {"0": 0})
        assert [d.token_ids[0] for d in told] == list(range(1000, 1256))
        del told
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        assert asyncio.run(end_some()) < 10_000 * count
    finally:
        tracemalloc.stop()
