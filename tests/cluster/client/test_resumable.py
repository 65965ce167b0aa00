"""What a client does with a stream that breaks, is silent or ends wrongly; the server is a few lines of events."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest

from cluster.client import Client
from cluster.client.errors import (
    ApiStatusError,
    BadRequestError,
    BrokenStreamError,
    ClientError,
    NotFoundError,
    RateLimitError,
    ServerError,
)
from cluster.client.resumable import MAX_SILENCE_HEADER, ResumableStream

REQUEST = {"url": "/v1/completions", "json": {"prompt": "x", "return_token_ids": True}}
ID = "cmpl-" + "0" * 32


def event(number: int, token: int, finish: str = "null") -> list[str]:
    data = (
        f'{{"id": "{ID}", "model": "m", "seed": 7, "system_fingerprint": "f", "choices": [{{"index": 0, "text": "t", '
        f'"finish_reason": {finish}, "token_ids": [{token}]}}]}}'
    )
    return [f"data: {data}", f"id: {ID}:1:{number}:0", ""]


USAGE = 'data: {"id": "a", "model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'


def fed(stream: ResumableStream, lines: list[str]) -> int:
    """Number of chunks in ``lines``."""
    return sum(stream.feed(line) is not None for line in lines)


def test_what_is_sent_again_is_what_has_arrived():
    stream = ResumableStream(REQUEST, 3)
    asks = {"bireme-resumable": "1"}
    assert stream.request() == {**REQUEST, "headers": asks}
    assert fed(stream, [": keep-alive", "", *event(1, 5), ": keep-alive", ": keep-alive", *event(2, 6)]) == 2
    again = stream.request()
    assert again["headers"] == {**asks, "Last-Event-ID": f"{ID}:1:2:0"}
    assert again["json"]["seed"] == 7
    assert again["json"]["resume"] == {"fingerprint": "f", "choices": [{"token_ids": [5, 6], "finish_reason": None}]}


def test_the_usage_is_told_once_however_often_it_arrives():
    stream = ResumableStream(REQUEST, 3)
    assert fed(stream, [*event(1, 5, '"stop"'), USAGE, ""]) == 2
    with pytest.raises(BrokenStreamError):
        stream.end_of_response()
    assert fed(stream, [USAGE, "", "data: [DONE]"]) == 0
    stream.end_of_response()
    assert stream.is_complete


def test_the_usage_in_every_chunk_does_not_hide_the_last_one():
    stream = ResumableStream(REQUEST, 3)
    with_usage = [line.replace('"choices"', USAGE[USAGE.index('"usage"') : -1] + ', "choices"') for line in event(1, 5)]
    assert "usage" in with_usage[0]
    assert fed(stream, [*with_usage, USAGE, "", USAGE, ""]) == 2


def test_an_event_that_is_cut_off_behind_its_data_comes_again():
    stream = ResumableStream(REQUEST, 3)
    assert fed(stream, [*event(1, 5), *event(2, 6)[:-1]]) == 1
    with pytest.raises(BrokenStreamError):
        stream.end_of_response()
    assert stream.request()["json"]["resume"]["choices"][0]["token_ids"] == [5]
    assert fed(stream, event(2, 6)) == 1


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (httpx.ReadError("cut"), True, True),
        (httpx.ReadTimeout("silent"), True, True),
        (httpx.ConnectError("nobody"), False, True),
        (BrokenStreamError("cut off"), True, True),
        (ServerError("HTTP 502", None, None, 502), True, True),
        (RateLimitError("full", None, "overloaded", 429), False, True),
        (ServerError("loading", None, "loading", 503), False, True),
        (ServerError("not whole", None, "request_lost", 503), True, True),
        (ApiStatusError("gone", None, "request_lost", 499), True, True),
        (NotFoundError("Path '/v1/completions' not found. Ping http://.../-/routes", None, None, 404), True, True),
        (NotFoundError("there is no /v1/completion", None, None, 404), False, False),
        (BadRequestError("no", None, "invalid_value", 400), False, False),
        (ServerError("no such engine", None, "fingerprint_mismatch", 503), False, False),
    ],
)
def test_which_errors_break_a_stream_before_and_after_its_first_event(error, before, after):
    stream = ResumableStream(REQUEST, 3)
    assert (stream.seconds_to_wait(error) is not None) == before
    fed(stream, event(1, 5))
    assert (stream.seconds_to_wait(error) is not None) == after


@pytest.mark.parametrize("status", [404, 503])
def test_a_proxy_that_does_not_know_the_way_yet_is_asked_again_and_again_before_the_backoff_is_over(status):
    no_route = ServerError("Path '/v1/completions' not found. Ping http://.../-/routes", None, None, status)
    now = 0.0
    stream = ResumableStream(REQUEST, 30, now=lambda: now)
    waits = [stream.seconds_to_wait(httpx.ReadError("cut")) for _ in range(6)]
    assert waits[-1] > 1.0
    knocks = 0
    while now < 10.0:
        wait = stream.seconds_to_wait(no_route)
        assert wait is not None and wait <= 0.2, "a stream that is given up, or that waits for long"
        now, knocks = now + wait, knocks + 1
    assert knocks > 40


def test_breaks_without_progress_are_bounded_and_progress_starts_the_count_anew():
    stream, cut = ResumableStream(REQUEST, 2), httpx.ReadError("cut")
    assert [stream.seconds_to_wait(cut) is None for _ in range(3)] == [False, False, True]
    fed(stream, event(1, 5))
    assert [stream.seconds_to_wait(cut) is None for _ in range(3)] == [False, False, True]


def test_what_only_repeats_is_no_progress():
    """A proxy that always cuts before the end of the answer gets so many connections and no more."""
    stream, cut = ResumableStream(REQUEST, 2), httpx.ReadError("cut")
    fed(stream, [*event(1, 5, '"stop"'), USAGE, ""])
    given_up = []
    for _ in range(3):
        given_up.append(stream.seconds_to_wait(cut) is None)
        fed(stream, [USAGE, ""])
    assert given_up == [False, False, True]


@pytest.mark.parametrize(
    ("promised", "limit"),
    [("1.5", 2.5), ("100", 60.0), ("0", 60.0), ("-1", 60.0), ("nan", 60.0), ("x", 60.0), (None, 60.0)],
)
def test_a_promise_bounds_the_silence_that_is_waited_for_and_never_lengthens_it(promised, limit):
    headers = {} if promised is None else {MAX_SILENCE_HEADER: promised}
    assert ResumableStream(REQUEST, 3).silence_limit(headers, 60.0) == limit


def test_a_server_that_keeps_breaking_its_promise_is_given_more_time():
    stream, silent = ResumableStream(REQUEST, 9), httpx.ReadTimeout("silent")
    limits = []
    for _ in range(6):
        limits.append((stream.begin_limit(60.0), stream.silence_limit({MAX_SILENCE_HEADER: "1.5"}, 60.0)))
        stream.seconds_to_wait(silent)
    assert limits == [(2.5, 2.5), (5.0, 5.0), (10.0, 10.0), (20.0, 20.0), (40.0, 40.0), (60.0, 60.0)]
    fed(stream, event(1, 5))
    assert (stream.begin_limit(60.0), stream.silence_limit({MAX_SILENCE_HEADER: "1.5"}, 60.0)) == (2.5, 2.5)


@pytest.mark.parametrize(("max_resumes", "token_ids"), [(0, True), (3, False)])
def test_who_cannot_ask_again_is_patient(max_resumes, token_ids):
    stream = ResumableStream({**REQUEST, "json": {"prompt": "x", "return_token_ids": token_ids}}, max_resumes)
    if not token_ids:
        # Until something has arrived, nothing can be lost by asking again.
        assert stream.begin_limit(60.0) == 2.5
        fed(stream, event(1, 5))
        assert stream.seconds_to_wait(httpx.ReadError("cut")) is None
    assert (stream.begin_limit(60.0), stream.silence_limit({MAX_SILENCE_HEADER: "1.5"}, 60.0)) == (60.0, 60.0)


def test_a_second_address_is_given_as_much_time_as_the_first():
    stream, silent, limits = ResumableStream(REQUEST, 9, num_addresses=2), httpx.ReadTimeout("silent"), []
    for _ in range(4):
        limits.append(stream.begin_limit(60.0))
        stream.seconds_to_wait(silent)
    assert limits == [2.5, 2.5, 5.0, 5.0]


def test_a_server_that_is_loading_is_waited_for_by_a_request_that_another_one_had():
    loading = ServerError("loading", None, "loading", 503)
    stream = ResumableStream(REQUEST, 3)
    stream.seconds_to_wait(httpx.ReadError("died"))
    assert stream.seconds_to_wait(loading) is not None


def test_a_server_without_event_ids_cannot_take_an_answer_up():
    stream = ResumableStream(REQUEST, 3)
    fed(stream, event(1, 5)[::2])
    assert stream.seconds_to_wait(httpx.ReadError("cut")) is None


def test_a_server_that_hangs_is_left_after_the_time_of_silence():
    """Its connection stays open: a stopped process closes nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            for _ in range(2):
                accepted.append(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with Client(url, timeout=0.3, max_resumes=1) as client, pytest.raises(ClientError, match="timed out"):
            client.complete("x")
        thread.join(5)
        assert len(accepted) == 2
        for connection in accepted:
            connection.close()
