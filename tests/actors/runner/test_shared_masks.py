"""Masks that the compute threads make are those that a matcher writes by itself, and the ops beside them keep their bits."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runner.shared_masks import SharedMasks, compute_threads_make_masks
from actors.structured_output.grammars import Grammars
from actors.structured_output.thinking import Matcher, ThinkingMatcher
from actors.text.vocabulary import Vocabulary
from cluster.grammar import JSON_SCHEMA, Grammar
from cluster.reasoning import ReasoningMarks
from gpu_ops import forward
from gpu_ops.sampling import mask_words
from tests.actors.structured_output.json_tokenizer import EOS, VOCAB_SIZE, json_tokenizer
from tests.actors.structured_output.random_schemas import schemas

TOKENIZER = json_tokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER, VOCAB_SIZE)
GRAMMARS = Grammars(lambda: VOCABULARY, VOCAB_SIZE, (EOS,))
MARKS = ReasoningMarks(("{",), ("<ab>",), tuple(TOKENIZER.encode("<ab>", add_special_tokens=False)), is_open=True)
SLOTS = 10


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request) -> Iterator[int]:
    before = forward.get_num_threads()
    forward.set_num_threads(request.param)
    yield request.param
    forward.set_num_threads(before)


def allowed_by(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(mask[1:].view(np.uint8), bitorder="little"))


@settings(max_examples=25, deadline=None)
@given(st.lists(schemas(), min_size=1, max_size=SLOTS), st.integers(0, 2**32 - 1))
def test_shared_masks_are_those_of_matchers_to_the_end_and_behind_a_wrong_token(values, seed):
    rng = np.random.default_rng(seed)

    def matchers() -> dict[int, Matcher]:
        of_slot: dict[int, Matcher] = {}
        for slot, value in enumerate(values):
            inner = GRAMMARS.matcher(Grammar(JSON_SCHEMA, json.dumps(value)))
            of_slot[SLOTS - 1 - slot] = ThinkingMatcher(3, MARKS, VOCABULARY.token_bytes, inner) if slot == 1 else inner
        return of_slot

    shared, alone = matchers(), matchers()
    masks = np.zeros((SLOTS, mask_words(VOCAB_SIZE)), np.int32)
    steps, expected = SharedMasks(masks), np.zeros_like(masks)
    for _ in range(25):
        masks[:] = expected[:] = 0
        steps.start(shared)
        for slot, matcher in alone.items():
            matcher.fill(expected[slot])
        steps.finish()
        assert (masks == expected).all()
        for slot, matcher in alone.items():
            wrong = rng.random() < 0.02
            token = int(rng.integers(VOCAB_SIZE)) if wrong else int(rng.choice(allowed_by(masks[slot])))
            shared[slot].accept(token)
            matcher.accept(token)
    for slot, matcher in alone.items():
        assert shared[slot].has_failed == matcher.has_failed


def test_a_compute_thread_makes_masks_while_others_compute_and_bits_stay(threads):
    grammar = Grammar(JSON_SCHEMA, json.dumps({"type": "array", "items": {"type": "string"}}))
    first = GRAMMARS.matcher(grammar)
    expected = np.zeros(mask_words(VOCAB_SIZE), np.int32)
    first.fill(expected)
    masks = np.zeros((SLOTS, len(expected)), np.int32)
    steps = SharedMasks(masks)
    rng = np.random.default_rng(0)
    weight = forward.pack_weight(paddle.to_tensor(rng.standard_normal((640, 256), dtype=np.float32)))
    rows = paddle.to_tensor(rng.standard_normal((4, 256), dtype=np.float32))
    product = forward.linear(rows, weight, 640).numpy()
    stop = threading.Event()
    others: list[bool] = []

    def compute() -> None:
        while not stop.is_set():
            others.append((forward.linear(rows, weight, 640).numpy() == product).all())

    beside = threading.Thread(target=compute)
    beside.start()
    for _ in range(200):
        masks[:] = 0
        steps.start({slot: GRAMMARS.matcher(grammar) for slot in range(SLOTS)})
        if threads > 1:
            until = time.monotonic() + 30
            while not (masks == expected).all():
                assert time.monotonic() < until, "no compute thread made a mask"
                time.sleep(0)
        steps.finish()
        assert (masks == expected).all()
    stop.set()
    beside.join()
    assert others and all(others)


def test_what_nobody_has_begun_is_made_by_who_wants_it():
    forward.set_num_threads(1)
    grammar = Grammar(JSON_SCHEMA, "{}")
    masks = np.zeros((2, mask_words(VOCAB_SIZE)), np.int32)
    steps = SharedMasks(masks)
    steps.start({1: GRAMMARS.matcher(grammar)})
    assert not masks[1].any()
    steps.finish()
    assert len(allowed_by(masks[1])) and not masks[0].any()


def test_compute_threads_make_masks_where_they_have_every_core():
    cores = len(os.sched_getaffinity(0))
    assert compute_threads_make_masks(False, max(2, cores))
    assert not compute_threads_make_masks(True, max(2, cores))
    assert not compute_threads_make_masks(False, 1)
    assert not compute_threads_make_masks(False, cores - 1)
