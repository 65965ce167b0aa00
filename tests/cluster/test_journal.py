"""The journal delivers every token once and in order, whatever the stream repeats, drops or delays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.journal import JournalEntry, JournalGapError, RequestJournal
from cluster.outputs import TokenDelta, TokenLogprobs
from cluster.sampling_params import SamplingParams

TOKENS = list(range(1000, 1040))


def entry(**fields) -> JournalEntry:
    return JournalEntry("r", [1, 2, 3], SamplingParams(seed=7, max_tokens=len(TOKENS)), subscriber="ingress", **fields)


def delta(index: int, count: int, attempt: int = 0) -> TokenDelta:
    """What an engine sends for tokens [index, index + count)."""
    tokens = TOKENS[index : index + count]
    logprobs = [TokenLogprobs(-float(token), 1, [], []) for token in tokens]
    return TokenDelta("r", attempt, index, tokens, logprobs, "length" if index + count >= len(TOKENS) else None)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, len(TOKENS) - 1), st.integers(1, 8), st.booleans()), max_size=60
    )
)
def test_each_token_once_and_in_order_under_any_mixture_of_deltas(events):
    record, delivered, finishes = entry(), [], 0
    for age, index, count, resume in events:
        if resume and not record.finished:
            request = record.resume_request()
            assert request.output_token_ids == delivered
            assert request.attempt == record.attempt
        attempt = max(0, record.attempt - age)
        try:
            new = record.accept(delta(index, count, attempt))
        except JournalGapError:
            assert attempt == record.attempt
            assert index > len(delivered)
            continue
        if new is not None:
            assert attempt == record.attempt, "a token of an older attempt got through"
            assert new.index == len(delivered)
            assert [-lp.logprob for lp in new.logprobs] == new.token_ids
            delivered += new.token_ids
            finishes += new.finish_reason is not None
    assert delivered == TOKENS[: len(delivered)]
    assert record.output_token_ids == delivered
    assert finishes == record.finished
    assert record.finished == (len(delivered) == len(TOKENS))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.booleans()), max_size=40), st.integers(0, len(TOKENS))
)
def test_a_token_alone_is_accepted_as_a_delta_is_or_left_to_it(events, ended_after):
    alone, by_deltas = entry(), entry()
    for number, (age, index, resume) in enumerate(events):
        if resume:
            for record in (alone, by_deltas):
                record.attempt += 1
        if number == ended_after:
            for record in (alone, by_deltas):
                record.accept(TokenDelta("r", record.attempt, record.next_index, [], None, "stop"))
        attempt = max(0, alone.attempt - age)
        try:
            new = by_deltas.accept(TokenDelta("r", attempt, index, [TOKENS[index]]))
        except JournalGapError:
            new = None
        assert alone.accept_token(attempt, index, TOKENS[index]) == (new is not None)
        assert alone == by_deltas


def test_a_lost_message_is_reported_and_recorded_nowhere():
    record = entry()
    record.accept(delta(0, 2))
    with pytest.raises(JournalGapError, match="token 5 arrived, token 2 is still missing"):
        record.accept(delta(5, 1))
    assert record.next_index == 2
    assert record.accept(delta(1, 5)).token_ids == TOKENS[2:6]


def test_resumed_request_carries_what_the_client_has_and_keeps_the_seed():
    record = entry(priority=3, cache_salt="tenant")
    record.accept(delta(0, 4))
    request = record.resume_request()
    assert (request.attempt, request.output_token_ids) == (1, TOKENS[:4])
    assert (request.prompt_token_ids, request.params.seed) == ([1, 2, 3], 7)
    assert (request.subscriber, request.priority, request.cache_salt) == ("ingress", 3, "tenant")
    record.accept(delta(4, 1, attempt=1))
    assert request.output_token_ids == TOKENS[:4], "the submitted request changed under the engine"


def test_finish_without_tokens_is_delivered_once():
    record = entry()
    last = TokenDelta("r", 0, 0, [], None, "stop", 2)
    assert record.accept(last) == last
    assert record.accept(last) is None


def test_journal_holds_only_open_requests():
    journal = RequestJournal()
    journal.open(entry())
    journal.get("r").accept(delta(0, 3))
    assert journal.resume_indices() == {"r": 3}
    with pytest.raises(ValueError, match="already in the journal"):
        journal.open(entry())
    journal.get("r").accept(delta(3, len(TOKENS)))
    assert journal.resume_indices() == {}
    journal.close("r")
    assert len(journal) == 0
    assert journal.get("r") is None
