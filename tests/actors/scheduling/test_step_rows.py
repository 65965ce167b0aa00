"""The loops over a step's rows: the native ones do what their plain twins do, to every object."""

from __future__ import annotations

import copy
import gc
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scheduling import step_rows as module
from actors.scheduling.sequence import Sequence
from actors.scheduling.step_rows import PythonRows, step_rows
from cluster.outputs import PlainTokens
from cluster.request import EngineRequest, RequestState
from cluster.sampling_params import SamplingParams
from gpu_ops.build import OpBuildError

BLOCK_SIZE = 4
FIELDS = [name for name in Sequence.__slots__ if name != "request"]


@pytest.fixture(scope="module")
def native():
    rows = step_rows()
    assert not isinstance(rows, PythonRows), "it was not built"
    return rows


@st.composite
def sequences(draw) -> list[Sequence]:
    """In any state, as far along as any; each has its own slot."""
    made = []
    for slot in draw(st.permutations(range(draw(st.integers(0, 9))))):
        prompt, old = draw(st.integers(1, 9)), draw(st.integers(0, 3))
        params = SamplingParams(
            max_tokens=draw(st.integers(old + 1, 9)), logprobs=draw(st.sampled_from([None, None, 2]))
        )
        request = EngineRequest(
            f"r{slot}",
            [300 + slot] * prompt,
            params,
            draw(st.integers(0, 300)),
            draw(st.sampled_from("abc")),
            [7] * old,
        )
        sequence = Sequence(request, slot)
        sequence.slot, sequence.state = slot, draw(st.sampled_from([RequestState.RUNNING] * 5 + list(RequestState)))
        sequence.token_ids += [8] * draw(st.integers(0, params.max_tokens - old - 1))
        sequence.num_tokens = len(sequence.token_ids) + draw(st.integers(0, 1))
        sequence.num_computed_tokens = sequence.num_tokens - draw(st.integers(1, 2))
        sequence.block_ids = list(range(draw(st.integers(0, sequence.num_tokens // BLOCK_SIZE + 1))))
        sequence.num_registered_blocks = draw(st.integers(0, len(sequence.block_ids)))
        made.append(sequence)
    return made


def seen(sequence: Sequence) -> list:
    return [getattr(sequence, name) for name in FIELDS]


@given(sequences(), st.integers(0, 9))
def test_rows_are_planned_alike(native, rows, start):
    start, outcomes = min(start, len(rows)), []
    for loops in (native, PythonRows()):
        own = copy.deepcopy(rows)
        scheduled, request_ids, owners, sampling, not_plain = {}, {}, {}, [], []
        stopped = loops.plan_rows(own, start, BLOCK_SIZE, scheduled, request_ids, owners, sampling, not_plain)
        assert all(owners[sequence.slot] is sequence for sequence in own if sequence.slot in scheduled)
        new_blocks = loops.rows_with_new_blocks(scheduled, owners, BLOCK_SIZE)
        outcomes.append(
            (stopped, list(scheduled.items()), list(request_ids.items()), list(owners), sampling,
             [own.index(sequence) for sequence in new_blocks], [own.index(sequence) for sequence in not_plain],
             [seen(sequence) for sequence in own])
        )  # fmt: skip
    assert outcomes[0] == outcomes[1]


@given(sequences(), st.data())
def test_tokens_are_accepted_alike(native, rows, data):
    slots = data.draw(
        st.lists(st.sampled_from([sequence.slot for sequence in rows]), unique=True) if rows else st.just([])
    )
    tokens = [data.draw(st.integers(0, 70_000)) for _ in slots]
    outcomes = []
    for loops in (native, PythonRows()):
        own = copy.deepcopy(rows)
        plain = {"b": PlainTokens(["old"], [1], [2], [3])}
        said = loops.accept_rows(slots, tokens, {s.slot: s for s in own}, plain)
        assert all(type(lists) is PlainTokens for lists in plain.values())
        outcomes.append((said, list(plain.items()), [seen(sequence) for sequence in own]))
    assert outcomes[0] == outcomes[1]


@given(st.lists(st.tuples(st.booleans(), st.integers(-1, 70_000)), max_size=9), st.randoms())
def test_saved_slots_are_told_apart_alike(native, said, rng):
    goes_on, tokens = [one[0] for one in said], [one[1] for one in said]
    slots = rng.sample(range(len(said)), rng.randint(0, len(said)))
    request_ids = {slot: f"r{slot}" for slot in slots}
    assert native.saved_rows(request_ids, goes_on, tokens) == PythonRows().saved_rows(request_ids, goes_on, tokens)


def test_what_is_no_sequence_is_refused(native):
    request = EngineRequest("r", [1], SamplingParams(max_tokens=2))
    filled = {}, {}, {}, [], []
    with pytest.raises(TypeError, match="needs a Sequence, got int"):
        native.plan_rows([3], 0, BLOCK_SIZE, *filled)
    sequence = Sequence(request, 0)
    del sequence.request
    with pytest.raises(TypeError, match="needs a EngineRequest, got nothing"):
        native.plan_rows([sequence], 0, BLOCK_SIZE, *filled)
    with pytest.raises(KeyError):
        native.accept_rows([5], [1], {}, {})
    with pytest.raises(ValueError, match="as many tokens as slots"):
        native.accept_rows([5], [], {}, {})
    running = Sequence(request, 0)
    running.state = RequestState.RUNNING
    running.token_ids.append(1)
    with pytest.raises(TypeError, match="four lists"):
        native.accept_rows([0], [1], {0: running}, {"": ([], [])})
    with pytest.raises(IndexError, match="slot 2"):
        native.saved_rows({2: "r"}, [True], [1])


def test_references_are_given_back(native):
    """A thousand steps hold no more than one."""
    sequence = Sequence(EngineRequest("r", [1000] * 5, SamplingParams(max_tokens=1_000_000)), 0)
    sequence.state, sequence.slot, sequence.num_tokens, sequence.num_computed_tokens = RequestState.RUNNING, 400, 6, 5
    sequence.block_ids = list(range(1_000_000))
    sequence.token_ids.append(1)
    token, plain = 10**6, {"": PlainTokens.none()}
    kept = [sequence, sequence.request, sequence.request.request_id, sequence.slot, plain[""], PlainTokens.none]

    def step() -> None:
        scheduled, request_ids, owners, sampling, not_plain = {}, {}, {}, [], []
        assert native.plan_rows([sequence], 0, 1, scheduled, request_ids, owners, sampling, not_plain) == 1
        assert native.rows_with_new_blocks(scheduled, owners, 1) == [sequence]
        slots, tokens, _ = native.saved_rows(request_ids, [True] * 401, [token] * 401)
        assert native.accept_rows(slots, tokens, owners, plain) == (1, [])
        for lists in plain[""]:
            lists.clear()
        del sequence.token_ids[6:]

    step()
    gc.collect()
    before = [sys.getrefcount(one) for one in kept]
    for _ in range(1000):
        step()
    gc.collect()
    after = [sys.getrefcount(one) for one in kept]
    assert before == after


def test_without_a_compiler_python_does_it(monkeypatch, caplog):
    def fails(*arguments, **options):
        raise OpBuildError("no C++ compiler found")

    monkeypatch.setattr(module, "load_extension", fails)
    step_rows.cache_clear()
    try:
        assert isinstance(step_rows(), PythonRows)
        assert "no C++ compiler found" in caplog.text
    finally:
        step_rows.cache_clear()
