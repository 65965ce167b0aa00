"""What the load client sees of a stream is what strict readers see of it, whatever the pieces that it arrives in."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bench.answer_reader import AnswerReader
from tests.cluster.bench.small_server import DONE, event, text, usage
from tests.sse_readers import READERS

WORDS = st.sampled_from(["", " a", "é", "\n\n", 'data: {"', " \r\n "])
CHAT = st.builds(lambda word: event({"choices": [{"delta": {"role": "assistant", "content": word}}]}), WORDS)
COMPLETION = st.builds(text, WORDS)


def read(pieces: list[bytes], status: int = 200) -> AnswerReader:
    reader = AnswerReader()
    reader.begin(status)
    for moment, piece in enumerate(pieces, 1):
        reader.feed(piece, float(moment))
    reader.end()
    return reader


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None)
@given(st.lists(CHAT | COMPLETION, min_size=1, max_size=8), st.lists(st.integers(0, 5000), max_size=12), st.booleans())
def test_it_counts_what_every_strict_reader_finds(events: list[bytes], places: list[int], windows: bool):
    data = b"".join(events) + usage(3) + DONE
    found = [reader([data]) for reader in READERS]
    assert all(part == found[0] for part in found)
    with_tokens = [
        chunk
        for chunk in found[0]
        for choice in chunk["choices"]
        if choice.get("text") or choice.get("delta", {}).get("content")
    ]
    sent = b": a comment\n\n" + data
    reader = read(cut(sent.replace(b"\n", b"\r\n") if windows else sent, places))
    assert len(reader.arrivals) == len(with_tokens)
    assert reader.output_tokens == 3
    assert (reader.error is None) == bool(with_tokens)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=6))
def test_an_event_has_the_time_of_the_piece_that_ends_it(places: list[int]):
    parts = [text(" one"), text(" two"), usage(2) + DONE]
    pieces = cut(b"".join(parts), places)
    ends, size = [], 0
    for part in parts[:2]:
        size += len(part)
        seen = 0
        for moment, piece in enumerate(pieces, 1):
            seen += len(piece)
            if seen >= size:
                ends.append(float(moment))
                break
    assert list(read(pieces).arrivals) == ends


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (text() + usage(1), "the stream ended before [DONE]"),
        (text() + DONE, "no usage"),
        (usage(0) + DONE, "an answer without tokens"),
        (text() + event({"error": {"message": "too hot"}}) + DONE, "too hot"),
        (text() + b"data: {oops\n\n" + DONE, "no chunk of an answer"),
        (event({"choices": [{"text": 7}]}) + DONE, "no chunk of an answer"),
        (b"", "before [DONE]"),
    ],
)
def test_a_stream_that_is_not_whole_is_an_error(body: bytes, error: str):
    assert error in (read([body]).error or "")


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "no such model"}}', b'{"detail": "no such model"}', b"no such model"]
)
def test_a_refusal_says_why(body: bytes):
    assert read([body], 404).error == "HTTP 404: no such model"


def test_a_break_after_the_end_is_none_and_before_it_is_one():
    whole, half = AnswerReader(), AnswerReader()
    whole.feed(text() + usage(1) + DONE, 1.0)
    half.feed(text() + usage(1), 1.0)
    for reader in (whole, half):
        reader.broken("reset")
    assert whole.error is None
    assert half.error == "the connection broke: reset"


def test_the_role_and_the_reason_of_the_end_are_no_tokens_but_reasoning_and_token_ids_are():
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"text": "", "token_ids": [5]}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": None},
    ]
    reader = read([*map(event, chunks), usage(2), b"data: " + json.dumps({"usage": None}).encode() + b"\n\n" + DONE])
    assert list(reader.arrivals) == [2.0, 3.0]
    assert reader.error is None
