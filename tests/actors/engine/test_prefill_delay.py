"""Prompts that wait with a slot for others change no bit of any answer."""

from __future__ import annotations

from tests.engines import answer, make_engine, request


def _requests():
    for index in range(24):
        params = {"temperature": 1.0, "seed": index} if index % 2 else {}
        yield request(str(index), [3 + index, 5, 8 + index % 3], max_tokens=6 + 5 * (index % 4), **params)


def test_answers_are_those_of_requests_that_are_alone(tiny_model):
    alone = make_engine(tiny_model, enable_prefix_caching=False)
    assert alone.scheduler.prefill_delay.max_steps == 0  # a CPU's steps take as long as their tokens
    expected = {name: answer(deltas) for one in _requests() for name, deltas in alone.generate([one]).items()}
    alone.close()
    plans = []
    engine = make_engine(tiny_model, record=plans, max_num_seqs=16, prefill_delay_steps=4)
    given, left = {}, list(_requests())
    while left or engine.has_work():
        if left:
            engine.add_request(left.pop(0))
        for delta in engine.step():
            given.setdefault(delta.request_id, []).append(delta)
    engine.check_integrity()
    assert {name: answer(deltas) for name, deltas in given.items()} == expected
    held = [plan for plan in plans if not {insert.slot for insert in plan.inserts} <= plan.scheduled.keys()]
    assert len(held) >= 3
    engine.close()
