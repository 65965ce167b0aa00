"""What two loads say of a token's and a request's CPU time, and when they say nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.serving.bench_plane import Idle, Row, costs, report

TOKEN_US, REQUEST_US = 20.0, 1500.0


def row(answer_tokens: int, tokens_per_s: float, off_us: float, noise_us: float) -> Row:
    spent = TOKEN_US * tokens_per_s + REQUEST_US * tokens_per_s / answer_tokens
    cpu = {"ingress": spent + off_us}
    return Row(1, answer_tokens, tokens_per_s, tokens_per_s, 0.0, (0, 0), (0, 0), cpu, {"ingress": noise_us}, (1, 1))


def test_two_loads_tell_a_token_from_a_request():
    found = costs(row(256, 6400, 0, 1000), row(16, 6400, 0, 1000))
    assert found["ingress"] == pytest.approx((TOKEN_US, REQUEST_US))
    assert found["proxy + ingress"] == found["ingress"]
    assert found["proxy"] == (None, None), "none was seen"


def test_what_noise_may_be_is_no_cost():
    """One stream: an idle process that works now and then costs more than its tokens."""
    long, short = row(256, 100, -6000, 6000), row(16, 94, 0, 6000)
    token, request = costs(long, short)["ingress"]
    assert token is None, "negative, as the noise would have it"
    assert request == pytest.approx(REQUEST_US, rel=0.8), "a request is more than that"
    cells = report([(long, short)])[-1].split(" | ")
    assert cells[2] == "too few"
    assert not [cell for cell in cells if cell.startswith("-")]


def test_noise_grows_with_the_root_of_the_time():
    idle = Idle(Counter(), {"ingress": 0.004}, 1.0, 0.01)
    assert idle.noise_s("ingress", 4.0) == pytest.approx(0.01 + 0.008)
    assert idle.noise_s("proxy", 4.0) == 0.01, "what was never seen idle has the clock's step"
