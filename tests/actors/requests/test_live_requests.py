"""Counts of an actor's requests are those of its requests, whatever comes and goes."""

from __future__ import annotations

import asyncio
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.requests import ended_answers
from actors.requests.live_requests import LiveRequest, LiveRequests
from cluster.errors import StaleAttemptError
from cluster.outputs import FINISH_MOVE, GenerateReply, PlainTokens, TokenDelta, TokenLogprobs
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams


def request(name: str, attempt: int, num_prompt: int = 3, subscriber: str = "s") -> EngineRequest:
    return EngineRequest(name, [1] * num_prompt, SamplingParams(), attempt=attempt, subscriber=subscriber)


def future() -> asyncio.Future:
    return asyncio.get_running_loop().create_future()


NAMES = st.sampled_from("abc")
ATTEMPTS = st.integers(0, 2)
EVENTS = st.one_of(
    st.tuples(st.just("open"), NAMES, ATTEMPTS, st.integers(1, 9)),
    st.tuples(st.just("deliver"), NAMES, ATTEMPTS, st.sampled_from([None, None, "length", FINISH_MOVE])),
    st.tuples(st.just("drop"), NAMES, ATTEMPTS, st.none()),
)


@given(events=st.lists(EVENTS, max_size=60))
def test_counts_are_those_of_the_requests(events):
    asyncio.run(_play(events))


async def _play(events) -> None:
    live = LiveRequests()
    tokens: dict[tuple[str, int], int] = {}  # of those that have not ended
    num_said: dict[tuple[str, int], int] = {}
    remembered: set[tuple[str, int]] = set()
    ended = 0
    for kind, name, attempt, value in events:
        key = name, attempt
        if kind == "open":
            newest = max((a for n, a in remembered if n == name), default=-1)
            if key in remembered or attempt < live.newest_attempt(name):
                with pytest.raises(StaleAttemptError):
                    live.open(request(name, attempt, value), future())
                continue
            assert attempt >= newest or live.newest_attempt(name) <= attempt
            live.open(request(name, attempt, value), future())
            tokens[key], num_said[key] = value, 0
            remembered.add(key)
        elif kind == "deliver":
            index = num_said.get(key, 0)
            num_said[key] = index + 2
            found = live.deliver(TokenDelta(name, attempt, index, [7, 8], finish_reason=value))
            assert (found is not None) == (key in tokens)
            if found is not None:
                tokens[key] += 2
            if value is not None and found is not None:
                ended += 1
                del tokens[key]
                assert isinstance(await found.done, GenerateReply)
                if value == FINISH_MOVE:
                    remembered.discard(key)
        else:
            live.drop(key)
            tokens.pop(key, None)
            remembered.discard(key)
        assert dict.fromkeys(tokens) == dict.fromkeys(key for key, _ in live.unfinished())
        assert (live.num_unfinished, live.num_tokens, live.num_ended) == (len(tokens), sum(tokens.values()), ended)
        assert live.idle.is_set() == (not tokens)
        assert {key for key in remembered if key in live} == remembered
        assert len(live) == len(remembered)


async def test_a_stream_that_broke_is_told_what_it_missed_of_its_own_requests():
    live = LiveRequests()
    for name, subscriber in (("a", "s"), ("b", "other"), ("c", "s")):
        live.open(request(name, 0, subscriber=subscriber), future())
        for index in range(3):
            live.deliver(TokenDelta(name, 0, index, [index]))
    missing = list(live.missing("s", {"a": 1, "b": 0}))
    assert [[(d.request_id, d.index) for d in deltas] for deltas in missing] == [[("a", 1), ("a", 2)]]


@given(
    said=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30),
    begun=st.integers(0, 3),
    wanted=st.integers(0, 40),
    ends=st.booleans(),
)
def test_what_was_said_is_told_again_token_by_token(said, begun, wanted, ends):
    index, deltas = begun, [TokenDelta("a", 0, begun, [])]
    for count, with_logprobs in said:
        tokens = list(range(index, index + count))
        logprobs = [TokenLogprobs(-1.0, 1, [t], [-1.0]) for t in tokens] if with_logprobs else None
        deltas.append(TokenDelta("a", 0, index, tokens, logprobs))
        index += count
    if ends:
        deltas.append(TokenDelta("a", 0, index, [index], finish_reason="stop", matched_stop=index))
    sent = pickle.dumps(deltas)
    live = LiveRequest(request("a", 0), None, 0.0)  # type: ignore[arg-type]
    for delta in deltas:
        live.remember(delta)
    assert pickle.dumps(deltas) == sent, "what is on its way to a subscriber is not touched"
    told = live.said.following(wanted)
    assert all(d.index + len(d.token_ids) > wanted or d.finish_reason for d in told)
    by_token = {d.index + i: (t, d.logprobs and d.logprobs[i]) for d in told for i, t in enumerate(d.token_ids)}
    expected = {d.index + i: (t, d.logprobs and d.logprobs[i]) for d in deltas for i, t in enumerate(d.token_ids)}
    kept = {i: said for i, said in expected.items() if i >= wanted}
    assert {i: said for i, said in by_token.items() if i >= wanted} == kept
    assert by_token.items() <= expected.items()
    assert [d.finish_reason for d in told if d.finish_reason] == ["stop"] * ends
    plain = [d for d in told if d.logprobs is None and d.finish_reason is None]
    assert all(len(d.token_ids) == 1 for d in plain)


@given(
    begun=st.integers(0, 2),
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcd"), unique=True), st.sampled_from(["", "", "a", "d"]), st.integers(1, 4)
        ),
        max_size=10,
    ).map(lambda runs: [(names, other) for names, other, count in runs for _ in range(count)]),
    looks=st.sets(st.integers(0, 40)),
    ended=st.integers(0, 40),
    reason=st.sampled_from(["length", "abort"]),
)
def test_plain_tokens_are_told_again_as_far_as_they_were_said(begun, steps, looks, ended, reason):
    asyncio.run(_told_again(begun, steps, looks, ended, reason))


async def _told_again(begun, steps, looks, ended, reason) -> None:
    """Of two subscribers' requests. ``c`` ends. Somebody looks now and then, also when the engine's lists are ahead of what it
    has said."""
    live = LiveRequests()
    lists: dict[str, list[int]] = {}
    said: dict[str, list[int]] = {}
    for name in "abcd":
        made = request(name, 0, subscriber="s" if name < "d" else "other")
        made.output_token_ids = [50 + i for i in range(begun)]
        lists[name], said[name] = [1, 1, 1, *made.output_token_ids], []
        live.open(made, future()).follow(lists[name])
    finished: dict[str, str] = {}

    def check(wanted: int) -> None:
        told = {}
        for subscriber in ("s", "other"):
            for deltas in live.missing(subscriber, dict.fromkeys("abcd", wanted)):
                told.update({(d.request_id, d.index): (d.token_ids, d.finish_reason) for d in deltas})
        expected = {
            (name, begun + i): ([token], None)
            for name, tokens in said.items()
            for i, token in enumerate(tokens)
            if begun + i >= wanted and finished.get(name) != "abort"  # another engine has it
        }
        if finished.get("c") == "length":
            expected["c", begun + len(said["c"])] = ([], "length")
        assert told == expected

    for number, (names, other) in enumerate(steps):
        token = 100 + number
        names = [name for name in names if name not in finished]
        for name in names:
            lists[name].append(token)
        if number in looks:
            check(number % 3)
        for subscriber in ("s", "other"):
            its = [name for name in names if (name < "d") == (subscriber == "s") and name != other]
            if its:
                indices = [begun + len(said[name]) for name in its]
                live.deliver_plain(subscriber, PlainTokens(its, [0] * len(its), indices, [token] * len(its)))
        if other in names:
            live.deliver(TokenDelta(other, 0, begun + len(said[other]), [token]))
        for name in names:
            said[name].append(token)
        if number == ended:
            live.deliver(TokenDelta("c", 0, begun + len(said["c"]), [], finish_reason=reason))
            finished["c"] = reason
        if number in looks:
            check(number % 3)
        unfinished = [name for name in said if name not in finished]
        assert live.num_tokens == sum(3 + begun + len(said[name]) for name in unfinished)
    check(0)


class NotesEachRow(LiveRequests):
    """Notes each token with its request at once."""

    def deliver_plain(self, subscriber: str, tokens: PlainTokens) -> None:
        self._note(tokens)
        self.num_tokens += len(tokens.token_ids)


KEYS = st.sampled_from([(name, attempt) for name in "abcd" for attempt in (0, 0, 1)])
STEPS = st.one_of(
    st.tuples(st.just("plain"), st.lists(KEYS, unique=True)),
    st.tuples(st.just("plain"), st.lists(KEYS, unique_by=lambda key: key[0])),
    st.tuples(st.sampled_from(["open", "delta", "length", FINISH_MOVE, "drop"]), KEYS),
    st.tuples(st.just("look"), st.integers(0, 9)),
)


@given(steps=st.lists(STEPS, max_size=60))
@settings(max_examples=400)
def test_what_is_noted_late_is_as_if_each_token_were_noted_at_once(steps):
    """Requests leave steps because they end, are dropped, are preempted or say more than a token, and come again."""
    asyncio.run(_play_twice(steps))


async def _play_twice(steps) -> None:
    both = LiveRequests(), NotesEachRow()
    lists: dict[tuple[str, int], list[int]] = {}  # the engine's, of those that have not ended: prompt and answer

    def agree(wanted: int) -> None:
        late, at_once = ([list(live.missing("s", dict.fromkeys("abcd", wanted))) for _ in range(2)] for live in both)
        assert late == at_once

    begin = [("open", (name, attempt)) for name in "abcd" for attempt in (0, 1) if attempt == 0 or name in "ab"]
    for kind, what in [*begin, *steps]:
        if kind == "plain":
            keys = [key for key in what if key in lists]
            names, attempts = [list(part) for part in zip(*keys, strict=True)] if keys else ([], [])
            indices = [len(lists[key]) - 3 for key in keys]
            for key, index in zip(keys, indices, strict=True):
                lists[key].append(index)
            for live in both:
                live.deliver_plain("s", PlainTokens(names, attempts, indices, indices))
        elif kind == "look":
            agree(what)
        elif kind == "open":
            if what not in both[0] and what[1] > both[0].newest_attempt(what[0]):
                lists[what] = [1, 1, 1]
                for live in both:
                    live.open(request(*what), future()).follow(lists[what])
        elif kind == "drop":
            lists.pop(what, None)
            for live in both:
                live.drop(what)
        elif what in lists:
            index = len(lists[what]) - 3
            lists[what].append(index)
            for live in both:
                live.deliver(TokenDelta(*what, index, [index], finish_reason=None if kind == "delta" else kind))
            if kind != "delta":
                del lists[what]
        counts = [(live.num_unfinished, live.num_tokens, live.num_ended, len(live)) for live in both]
        assert counts[0] == counts[1]
        assert both[0].num_tokens == sum(map(len, lists.values()))
        late, at_once = ({key: one.words for key, one in live._ended._kept.items()} for live in both)
        assert late == at_once, "who ended"
    agree(0)


async def test_a_long_answer_is_few_objects():
    live = LiveRequests()
    kept = live.open(request("a", 0), future())
    kept.follow([1] * 3 + list(range(1000)))
    live.deliver(TokenDelta("a", 0, 0, [0], num_cached_tokens=3))
    for index in range(1, 999):
        live.deliver_plain("s", PlainTokens(["a"], [0], [index], [index]))
    live.deliver(TokenDelta("a", 0, 999, [999], finish_reason="length"))
    assert len(kept.deltas) == 2
    (said,) = live.missing("s", {"a": 0})
    assert [(d.index, d.token_ids) for d in said] == [(i, [i]) for i in range(1000)]


async def test_only_answers_that_ended_long_ago_are_dropped(monkeypatch):
    live = LiveRequests()
    for name in "ab":
        live.open(request(name, 0), future())
    live.deliver(TokenDelta("a", 0, 0, [1], finish_reason="length"))
    live.drop_old()
    assert ("a", 0) in live
    monkeypatch.setattr(ended_answers, "RETENTION_S", -1.0)
    live.drop_old()
    assert [key for key in (("a", 0), ("b", 0)) if key in live] == [("b", 0)]
    assert live.newest_attempt("a") == -1


async def test_a_wait_counts_from_the_ingress_for_who_waited_elsewhere_and_from_here_for_the_rest_of_an_answer():
    live, now = LiveRequests(), time.time()
    asked = {
        name: request(name, attempt) for name, attempt in (("first", 0), ("elsewhere", 1), ("begun", 1), ("ahead", 1))
    }
    asked["elsewhere"].came_at = asked["begun"].came_at = now - 5
    asked["begun"].output_token_ids = [7]
    asked["ahead"].came_at = now + 5  # the clock of its ingress is
    for one in asked.values():
        live.open(one, future())
    waits = {name: live.wait_s((name, one.attempt)) for name, one in asked.items()}
    assert 5 <= waits.pop("elsewhere") < 5 + 1
    assert all(0 <= wait < 1 for wait in waits.values()) and live.wait_s(("none", 0)) == 0


@pytest.mark.parametrize("num_left", [0, 1, 8, 9, 60])
async def test_of_whoever_leaves_a_step_what_it_said_is_noted(num_left):
    live, names = LiveRequests(), [f"{i:02}" for i in range(60)]
    for i, name in enumerate(names):
        live.open(request(name, 0), future()).follow([1] * 3 + list(range(100)))
        live.deliver(TokenDelta(name, 0, 0, list(range(i))))
    live.deliver_plain("s", PlainTokens(names, [0] * 60, list(range(60)), list(range(60))))
    stay = names[num_left:] + ["other"]
    live.deliver_plain(
        "s", PlainTokens(stay, [0] * len(stay), list(range(num_left + 1, 60 + 1)) + [0], [7] * len(stay))
    )
    noted = {name for i, name in enumerate(names) if live._of[name, 0].num_said == i + 1}
    assert noted == set(names[:num_left])


async def test_that_many_leave_a_step_costs_a_few_comparisons_each():
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    live, count = LiveRequests(), 1000
    names = [f"{i:04}" for i in range(count)]
    for name in names:
        live.open(request(name, 0), future()).follow([1, 1, 1, 5])
    live.deliver_plain("s", PlainTokens([Name(name) for name in names], [0] * count, [0] * count, [5] * count))
    live.deliver_plain("s", PlainTokens(["other"], [0], [0], [5]))
    assert all(one.num_said == 1 for one in live._of.values())
    assert count <= compared <= 20 * count


async def test_who_comes_back_costs_what_it_asks_for_and_not_what_ended(monkeypatch):
    live, asked = LiveRequests(), []
    for number in range(50):
        live.open(request(str(number), 0), future())
        live.deliver(TokenDelta(str(number), 0, 0, [number], finish_reason="length"))
    live.open(request("live", 0), future())
    following = ended_answers.EndedAnswers.following
    monkeypatch.setattr(ended_answers.EndedAnswers, "following", lambda *a: asked.append(a[1]) or following(*a))
    missing = list(live.missing("s", {"7": 0, "live": 0, "unknown": 3}))
    assert [[d.token_ids for d in deltas] for deltas in missing] == [[[7]]]
    assert asked == [("7", 0), ("unknown", -1)]
    assert [key for key, _ in live.unfinished()] == [("live", 0)]


async def test_of_an_attempt_that_was_opened_anew_the_newest_is_told():
    live = LiveRequests()
    for attempt in range(2):
        live.open(request("a", attempt), future())
        live.deliver(TokenDelta("a", attempt, 0, [attempt], finish_reason="length"))
    assert [[d.attempt for d in deltas] for deltas in live.missing("s", {"a": 0})] == [[1]]
