"""Engines of one machine hold the stored weights once."""

from __future__ import annotations

import pytest

from actors.model_files.source import ModelSource
from benchmarks.held_weights import engines
from cluster.config import DEFAULT_MODEL


@pytest.mark.slow
def test_two_engines_share_weights_that_take_little_more_than_their_file(smollm2_source: ModelSource):
    num_bytes = smollm2_source.path.stat().st_size
    held = engines(DEFAULT_MODEL)
    for one in held:
        assert 0.8 * num_bytes < one.mapped <= 1.2 * num_bytes, "all weights are computed from where they are mapped"
        assert one.own == 0, "nobody writes to them"
        assert one.grown < 0.8 * num_bytes, "no second copy of them is held"
    assert sum(one.share for one in held) <= 1.2 * num_bytes, "two engines hold no more than one"
