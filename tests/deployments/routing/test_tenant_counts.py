"""What each tenant has on its way is what a look at every sequence finds, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api_errors import ApiError
from cluster.journal import JournalEntry, JournalGapError
from cluster.outputs import AttachRequired, EngineLoad, PlainTokens, TokenDelta
from cluster.sampling_params import SamplingParams
from deployments.metrics.request_events import RequestEvents
from deployments.routing.delivery import Delivery
from deployments.routing.departures import Departures
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.router.engine_rooms import EngineRooms
from deployments.routing.submission import Submission
from deployments.routing.submissions import CountedByTenant, Submissions
from deployments.routing.token_streams import TokenStream, TokenStreams

TENANTS = ("", "a", "b")
# What becomes of one: a token as most come, one with more said, a repeated or early one, the last one, the ends that another
# attempt follows, an engine's word that it has it; a new attempt; nobody cares any more.
WAYS = ("plain", "delta", "again", "gap", "stop", "handover", "move", "abort", "place", "displace", "close")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(TENANTS), st.integers(0, 2)),
        st.tuples(st.sampled_from(WAYS), st.integers(0, 2**16), st.integers(0, 1)),
    ),
    max_size=60,
)


def nobody(*_: Any) -> None:
    """Takes what is delivered."""


class Recounted:
    """The submissions of an ingress, to which things happen."""

    def __init__(self) -> None:
        choices = EngineChoices()
        self.submissions = Submissions(choices)
        self.delivery = Delivery(self.submissions, Departures(), RequestEvents())
        runner = SimpleNamespace(abort=SimpleNamespace(remote=nobody))
        self.streams = [TokenStream(AttachRequired(f"engine-{number}", runner, "f")) for number in range(2)]
        self.known: list[Submission] = []

    def open(self, tenant: str, had: int) -> None:
        """A request; with tokens that it had, its client takes its answer up."""
        entry = JournalEntry(
            f"r{len(self.known)}", [1], SamplingParams(max_tokens=99), tenant=tenant, attempt=int(had > 0)
        )
        # An answer of which another choice has begun has a fingerprint, and perhaps no token.
        entry.output_token_ids, entry.fingerprint = [5] * (had - 1), "f" if had else ""
        submission = Submission(entry, nobody, nobody)
        self.known.append(submission)
        self.submissions.open(submission)

    def happen(self, way: str, which: int, number: int) -> None:
        """Also to what is over."""
        if not self.known:
            return
        submission, stream = self.known[which % len(self.known)], self.streams[number]
        entry = submission.entry
        is_open = self.submissions.of(entry.request_id) is submission
        name, attempt, index = entry.request_id, entry.attempt, entry.next_index
        with contextlib.suppress(JournalGapError):
            if way == "plain":
                self.delivery.take_plain(stream, PlainTokens([name], [attempt], [index], [7]))
            elif way == "again":
                self.delivery.take_plain(stream, PlainTokens([name], [attempt], [0], [7]))
            elif way == "gap":
                self.delivery.take_plain(stream, PlainTokens([name], [attempt], [index + 1], [7]))
            elif way == "delta":
                self.delivery.take(stream, TokenDelta(name, attempt, index, [7, 8]))
            elif way in ("stop", "handover", "move", "abort"):
                tokens = [7] if which % 2 else []
                self.delivery.take(stream, TokenDelta(name, attempt, index, tokens, finish_reason=way))
        if way == "place" and is_open:
            self.submissions.place(submission, stream)
        elif way == "displace" and is_open:
            self.submissions.displace(submission)
            entry.resume_request()
        elif way == "close":
            self.submissions.close(submission)

    def check(self) -> None:
        """Count again."""
        live = list(self.submissions)
        to_begin = Counter(one.entry.tenant for one in live if not one.entry.output_token_ids)
        unplaced = Counter(one.entry.tenant for one in live if one in self.submissions.unplaced)
        assert self.submissions.to_begin.by_tenant == to_begin
        assert {tenant: self.submissions.to_begin.of(tenant) for tenant in TENANTS} == {
            tenant: to_begin[tenant] for tenant in TENANTS
        }
        assert self.submissions.unplaced.by_tenant == unplaced
        assert len(self.submissions.unplaced) == unplaced.total(), "of nobody who is over"
        assert all((one in self.submissions.unplaced) == (one.stream is None) for one in live)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_counts_are_what_a_recount_finds_after_everything_that_happens(steps):
    async def run() -> None:
        recounted = Recounted()
        for step in steps:
            if step[0] == "open":
                recounted.open(step[1], step[2])
            else:
                recounted.happen(*step)
            recounted.check()
        for submission in recounted.known:
            recounted.submissions.close(submission)
        assert recounted.submissions.to_begin.by_tenant == recounted.submissions.unplaced.by_tenant == {}

    asyncio.run(run())


async def test_a_check_of_a_tenant_does_not_go_through_the_sequences(monkeypatch):
    recounted, choices = Recounted(), EngineChoices()
    choices.set_engines({"e": "f"})
    streams: Any = TokenStreams("ingress", choices, nobody, dict, nobody, 1.0)
    rooms = EngineRooms(choices, streams, recounted.submissions, EngineLoad(12, 8), 0.5, 1)
    monkeypatch.delattr(Submissions, "__iter__")
    monkeypatch.delattr(CountedByTenant, "__iter__")
    for _ in range(8):
        recounted.open("a", 0)
        rooms.check(2, "b")
    with pytest.raises(ApiError, match="of this API key are waiting"):
        rooms.check(1, "a")
    rooms.check(2, "b")


async def test_answers_that_lost_their_engine_give_their_key_no_more_places(monkeypatch):
    """They are on their way, and none of them waits for a first token."""
    recounted, choices = Recounted(), EngineChoices()
    choices.set_engines({"e": "f"})
    streams: Any = TokenStreams("ingress", choices, nobody, dict, nobody, 1.0)
    rooms = EngineRooms(choices, streams, recounted.submissions, EngineLoad(12, 8), 0.5, 1)
    for _ in range(10):
        recounted.open("a", 2)
    # Eight places are the other key's: a share of four in the queue, and four slots.
    rooms.check(4, "b")
    with pytest.raises(ApiError, match="requests are waiting"):
        rooms.check(5, "b")
