"""What a server signs it knows again, and nothing else; a digest stands for the whole answer, however that came."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.api_errors import ApiError
from deployments.openai_api.answers.answer_digest import AnswerDigest
from deployments.openai_api.answers.event_ids import LIFETIME_S, EventIds, ResumePoint

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW = int(time.time())
POINT = ResumePoint("cmpl-" + "0" * 32, NOW, 7, 3, 2, "A" * 16)
COUNTS = st.integers(0, 10**9)
POINTS = st.builds(
    ResumePoint,
    st.from_regex(r"(chat)?cmpl-[0-9a-f]{32}", fullmatch=True),
    st.just(NOW),
    COUNTS,
    COUNTS,
    st.integers(0, 10**6),
    st.from_regex(r"[A-Za-z0-9+/]{16}", fullmatch=True),
)
EVENT_ID = EventIds(KEY).sign(POINT)


@settings(deadline=None)
@given(POINTS)
def test_what_was_signed_is_read_as_it_was(point):
    assert EventIds(KEY).read(EventIds(KEY).sign(point)) == point


@settings(deadline=None)
@given(POINTS, st.data())
def test_one_other_character_anywhere_makes_it_worthless(point, data):
    event_id = EventIds(KEY).sign(point)
    at = data.draw(st.integers(0, len(event_id) - 1))
    char = data.draw(st.characters())
    assume(char != event_id[at])
    with pytest.raises(ApiError):
        EventIds(KEY).read(event_id[:at] + char + event_id[at + 1 :])


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "x",
        "cmpl-" + "0" * 32 + ":1:16:0",
        EVENT_ID.rpartition(":")[0],
        EVENT_ID + "=",
        EVENT_ID + "\n",
        EVENT_ID.replace(":7:", ":8:"),
        EventIds(OTHER_KEY).sign(POINT),
        EVENT_ID.replace("cmpl", "\u00e9mpl"),
        EVENT_ID + "0" * 20_000,
    ],
)
def test_what_was_not_signed_is_refused_in_one_short_sentence_that_says_what_to_do(forged):
    with pytest.raises(ApiError, match="the header Last-Event-ID is no event id") as caught:
        EventIds(KEY).read(forged)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "Last-Event-ID", "invalid_event_id")
    assert len(error.message) < 400 and "begin anew" in error.message


def test_an_event_is_too_old_an_hour_after_it_and_not_after_the_beginning_of_its_answer():
    ids = EventIds(KEY)
    began = int(time.time()) - 10 * LIFETIME_S
    late = POINT._replace(created=began, age_s=9 * LIFETIME_S + 60)
    assert ids.read(ids.sign(late)) == late
    with pytest.raises(ApiError, match="older than 3600 s") as caught:
        ids.read(ids.sign(late._replace(age_s=9 * LIFETIME_S - 60)))
    assert (caught.value.status, caught.value.code) == (400, "event_id_expired")


TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
ANSWERS = st.lists(st.tuples(TOKENS, st.sampled_from([None, "stop", "length"])), min_size=1, max_size=5)


def digest_of(answers, prompts=((1, 2),), max_tokens=9, n=5, key=KEY) -> AnswerDigest:
    digest = AnswerDigest(key, prompts, max_tokens, n)
    for index, (token_ids, finish_reason) in enumerate(answers):
        digest.add(index, token_ids, finish_reason)
    return digest


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.data())
def test_a_digest_is_that_of_the_tokens_and_not_of_the_events_that_brought_them(answers, data):
    digest = AnswerDigest(KEY, [[1, 2]], 9, 5)
    left = {index: list(token_ids) for index, (token_ids, _) in enumerate(answers)}
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        count = data.draw(st.integers(min(1, len(left[index])), len(left[index])))
        ends = count == len(left[index])
        digest.add(index, left[index][:count], answers[index][1] if ends else None)
        left[index] = left[index][count:]
        if ends:
            del left[index]
    assert digest.text("f") == digest_of(answers).text("f")
    assert len(digest.text("f")) == 16


@settings(deadline=None)
@given(ANSWERS, ANSWERS)
def test_no_two_answers_have_one_digest(some, others):
    def content(answers):
        return [answer for answer in enumerate(answers) if answer[1] != ([], None)]

    assume(content(some) != content(others))
    assert digest_of(some).text("f") != digest_of(others).text("f")


def test_a_digest_is_of_what_was_asked_too():
    answers = [([1], None)]
    same = digest_of(answers).text("f")
    asked = [
        digest_of(answers, prompts=((1, 3),)),
        digest_of(answers, prompts=((1,), (2,))),
        digest_of(answers, max_tokens=10),
        digest_of(answers, max_tokens=None),
        digest_of(answers, n=4),
        digest_of(answers, key=OTHER_KEY),
    ]
    assert len({same, digest_of(answers).text("g"), *(digest.text("f") for digest in asked)}) == len(asked) + 2


def test_long_lists_of_tokens_are_digested_as_short_ones():
    long, piecewise = AnswerDigest(KEY, [], 1, 1), AnswerDigest(KEY, [], 1, 1)
    tokens = [i * 7919 % 2**31 for i in range(10_000)]
    long.add(0, tokens)
    for token in tokens:
        piecewise.add(0, [token])
    assert long.text("") == piecewise.text("")
