"""Which decode graphs a memory budget is spent on first."""

from __future__ import annotations

from actors.runner.decode_graphs import capture_order, decode_buckets


def test_what_serves_every_step_comes_first_then_what_halves_the_padding():
    order = capture_order(decode_buckets(100))
    assert order[:8] == [100, 64, 32, 16, 8, 4, 2, 1]
    assert sorted(order) == decode_buckets(100)
    assert order[8:] == sorted(order[8:], reverse=True)
    assert capture_order([1]) == [1]
