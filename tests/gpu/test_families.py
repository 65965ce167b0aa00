"""Families on the GPU: logits close to the CPU's, and the same bits however they are run."""

from __future__ import annotations

import numpy as np
import pytest

from actors.device.cpu import CpuDevice
from actors.device.gpu import GpuDevice
from actors.model_files.config import load_model_config
from actors.model_files.source import resolve_model
from actors.model_files.weights import iter_weights
from actors.models.decoder import BatchRows, Decoder
from actors.models.load import load_model
from tests.actors.models.test_models import all_logits
from tests.actors.runner.test_overlap import mixed_requests, replay
from tests.engines import FAMILIES, OTHER_FAMILIES
from tests.gpu.parts.engines import gpu_engine, write_tiny_gpu_model


@pytest.fixture(scope="module", params=OTHER_FAMILIES)
def folder(request, tmp_path_factory):
    return write_tiny_gpu_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_close_to_the_cpu(folder, dtype):
    """A prompt in chunks, single rows between them."""
    source = resolve_model(str(folder), load_format="dummy")
    config, token_ids = load_model_config(source), np.arange(3, 63)
    logits = []
    for make_device, chunks in ((CpuDevice, [60]), (lambda: GpuDevice(dtype), [20, 1, 1, 1, 37])):
        device = make_device()
        model = load_model(config, iter_weights(source, config, device.dtype), 128, device=device)
        logits.append(all_logits(model, token_ids, chunks).astype(np.float64))
    cpu, gpu = logits
    assert np.linalg.norm(gpu - cpu) < 0.05 * np.linalg.norm(cpu)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_op_of_all_layers_has_the_bits_of_single_ops(family, dtype, batch_invariant, tmp_path):
    """Chunks of a prompt, and rows that decode."""
    source = resolve_model(str(write_tiny_gpu_model(tmp_path, family)), load_format="dummy")
    config, device = load_model_config(source), GpuDevice(dtype, batch_invariant)
    model = load_model(config, iter_weights(source, config, dtype), 1024, device=device)
    if not all(layer.can_fuse for layer in model.layers):
        pytest.skip(f"{family} computes op by op")
    token_ids, chunks = np.arange(3, 703) % 90, [600, 1, 1, 1, 20, 77]
    fused, plain = (
        all_logits(model, token_ids, chunks, forward) for forward in (Decoder.forward_fused, Decoder.forward_op_by_op)
    )
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(fused.view(np.uint32), plain.view(np.uint32))
    fused, plain = (logits_of_slots(model, f) for f in (Decoder.forward_fused, Decoder.forward_op_by_op))
    np.testing.assert_array_equal(fused.view(np.uint32), plain.view(np.uint32))


def logits_of_slots(model, forward):
    """A step with prompts of 70 and 3 tokens, a slot without any and one row that decodes; then one that only decodes, padded."""
    device = model.device
    kv_cache = model.allocate_kv_cache(24, 16)
    tables = device.tensor(np.random.default_rng(0).permutation(24).astype(np.int32).reshape(4, 6))
    logits = []

    def step(rows, counts, most):
        slots, positions = (np.array(column, np.int32) for column in zip(*rows))
        ids = device.tensor((7 * positions + slots + 5).astype(np.int64) % 90)
        ends = None if counts is None else device.tensor(np.cumsum([0, *counts]).astype(np.int32))
        batch = BatchRows(ids, device.tensor(positions), device.tensor(slots), tables, ends, most)
        used = [row for row, (slot, _) in enumerate(rows) if slot >= 0]
        logits.append(model.compute_logits(forward(model, batch, kv_cache)).numpy()[used])

    prompts = [(0, position) for position in range(70)], [(1, position) for position in range(3)], [(3, 0)]
    step([row for rows in prompts for row in rows], (70, 3, 0, 1), 70)
    step([(0, 70), (1, 3), (3, 1), *[(-1, 0)] * 37], None, 1)
    return np.concatenate(logits)


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_known_families_have_the_op_of_all_layers(family, tmp_path):
    source = resolve_model(str(write_tiny_gpu_model(tmp_path, family)), load_format="dummy")
    config, device = load_model_config(source), GpuDevice()
    model = load_model(config, iter_weights(source, config, device.dtype), 128, device=device)
    assert all(layer.can_fuse for layer in model.layers)


@pytest.mark.parametrize("enforce_eager", [True, False])
def test_a_recorded_schedule_gives_the_same_bits_plain_and_overlapped(folder, enforce_eager):
    settings = {"num_kv_blocks": 8, "max_num_batched_tokens": 32, "enforce_eager": enforce_eager}
    plans: list = []
    engine = gpu_engine(folder, plans, **settings)
    engine.generate(mixed_requests())
    engine.check_integrity()
    engine.close()
    plain, overlapped = (replay(gpu_engine(folder, **settings).executor, plans, over) for over in (False, True))
    assert overlapped == plain
