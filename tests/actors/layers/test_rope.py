"""The rotary table and the scalings of its frequencies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from actors.layers.rope import RopeScaling, inverse_frequencies
from actors.model_files.rope_scaling import normalise_rope_scaling
from tests.actors.model_files.test_config import read


def test_rope_table_holds_cosines_then_sines():
    table = read().rope_table(20)
    assert table.shape == (20, 16)
    assert table.dtype == np.float32
    for position in (0, 1, 19):
        for pair in (0, 3, 7):
            angle = position * 10_000.0 ** (-2 * pair / 16)
            assert table[position, pair] == pytest.approx(math.cos(angle), abs=2e-6)
            assert table[position, 8 + pair] == pytest.approx(math.sin(angle), abs=2e-6)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    scaling = RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    plain, scaled = (inverse_frequencies(500_000.0, 128, s) for s in (RopeScaling(), scaling))
    waves = 2 * math.pi / plain
    np.testing.assert_allclose(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    np.testing.assert_allclose(scaled[waves > 8192], plain[waves > 8192] / 8)
    between = (waves > 8192 / 4) & (waves < 8192)
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))


def test_yarn_scales_the_table_by_its_attention_factor():
    scaling, context = normalise_rope_scaling(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, "x"
    )
    assert context == 131072
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    config = replace(read(), rope_scaling=scaling)
    assert config.rope_table(1)[0, 0] == pytest.approx(scaling.attention_factor)


def test_dynamic_scaling_is_none_within_the_original_context():
    assert normalise_rope_scaling({"type": "dynamic", "factor": 2.0}, 2048, "x") == (RopeScaling(), 2048)
