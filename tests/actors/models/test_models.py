"""Logits and texts against transformers; the reference values come from tests/golden/make_golden.py."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import paddle
import pytest

from actors.device.host_tensor import host_view
from actors.engine.loading import load_engine
from actors.layers.weights.dense import DenseWeight
from actors.layers.weights.quantised import QuantisedWeight
from actors.model_files.config import load_model_config
from actors.model_files.formats.layout import expected_tensors
from actors.model_files.source import resolve_model
from actors.model_files.weight_format import stored_kinds, weight_bytes
from actors.model_files.weights import iter_stored_weights, iter_weights
from actors.models.decoder import BatchRows, Decoder
from actors.models.load import load_model
from cluster.config import EngineConfig
from gpu_ops import forward
from gpu_ops.kv_cache import CPU_TYPES
from tests.actors.layers.transposed_weight import TransposedWeight
from tests.engines import request, tokens_of, write_quantised_model

GOLDEN = Path(__file__).parents[2] / "golden"
BLOCK = 16


def load(path: Path) -> Decoder:
    source = resolve_model(str(path), load_format="auto")
    config = load_model_config(source)
    return load_model(config, iter_weights(source, config), 128)


def copies_of(model: Decoder) -> dict[str, paddle.Tensor]:
    """Its ready tensors, as tensors over other memory."""
    return {name: model.device.mapped_tensor(host_view(t).copy()) for name, t in model.ready_tensors().items()}


def all_logits(model: Decoder, token_ids: np.ndarray, chunks: list[int], forward=Decoder.forward) -> np.ndarray:
    """Logits of every position, computed in the given chunks through the paged cache."""
    num_blocks, device = -(-len(token_ids) // BLOCK), model.device
    kv_cache = model.allocate_kv_cache(num_blocks + 2, BLOCK)
    # Blocks in reverse, so that a mistake in the block table cannot pass.
    block_tables = device.tensor(np.arange(num_blocks + 1, 1, -1, dtype=np.int32)[None])
    logits, start = [], 0
    for count in chunks:
        positions = np.arange(start, start + count, dtype=np.int32)
        rows = BatchRows(
            device.tensor(token_ids[positions].astype(np.int64)),
            device.tensor(positions),
            device.tensor(np.zeros(count, np.int32)),
            block_tables,
            device.tensor(np.array([0, count], np.int32)),
            count,
        )
        logits.append(model.compute_logits(forward(model, rows, kv_cache)).numpy())
        start += count
    return np.concatenate(logits)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name != "__pycache__")
)
def test_logits_match_transformers(name):
    forward.set_num_threads(2)
    reference = np.load(GOLDEN / name / "logits.npz")
    token_ids = reference["token_ids"]
    model = load(GOLDEN / name)
    whole = all_logits(model, token_ids, [len(token_ids)])
    assert np.abs(whole - reference["logits"]).max() < 1e-4
    chunked = all_logits(model, token_ids, [1, 20, *[1] * 10, len(token_ids) - 31])
    assert (chunked == whole).all(), "chunks must not change a bit"
    plain = all_logits(model, token_ids, [len(token_ids)], Decoder.forward_op_by_op)
    assert (plain == whole).all(), "the fused block must not change a bit"
    twin = Decoder(model.config, 128)
    kept = copies_of(model)
    twin.take_ready_tensors(kept, expected_tensors(model.config))
    assert (all_logits(twin, token_ids, [len(token_ids)]) == whole).all(), "kept weights must not change a bit"
    with pytest.raises(ValueError, match="not those of the model"):
        twin.take_ready_tensors({**kept, "embed": kept["embed"][:1]}, expected_tensors(model.config))


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "olmo2"])
def test_a_model_of_another_kind_of_weight_is_loaded_kept_and_computed_alike(name):
    reference = np.load(GOLDEN / name / "logits.npz")
    source = resolve_model(str(GOLDEN / name))
    config = load_model_config(source)
    model, again = (Decoder(config, 128, weight_kind=TransposedWeight) for _ in range(2))
    model.load_weights(iter_weights(source, config))
    logits = all_logits(model, reference["token_ids"], [len(reference["token_ids"])])
    assert np.abs(logits - reference["logits"]).max() < 1e-4
    kept = copies_of(model)
    again.take_ready_tensors(kept, expected_tensors(config))
    assert (all_logits(again, reference["token_ids"], [len(reference["token_ids"])]) == logits).all()


def test_a_model_of_quantised_weights_is_loaded_kept_and_computed_alike(tmp_path):
    source = resolve_model(str(write_quantised_model(tmp_path)))
    config = load_model_config(source)
    kinds = stored_kinds(source, config)
    assert set(kinds.values()) == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"}
    assert [name for name in expected_tensors(config) if name.endswith("_proj.weight") and name not in kinds] == [
        "model.layers.1.self_attn.o_proj.weight"
    ]
    token_ids = np.random.default_rng(0).integers(0, config.vocab_size, 40)
    model = load_model(config, iter_stored_weights(source, config, kinds), 64)
    held = sum(array.nbytes for array in map(host_view, model.ready_tensors().values()))
    # The plan counts a header for each matrix, and projections that are one matmul share one.
    assert held <= weight_bytes(config, kinds, 4) <= held + 128 * len(kinds)
    weights = [layer.attention for layer in model.layers] + [model.layers[0].mlp]
    assert [type(part.qkv.weight) for part in weights[:2]] == [QuantisedWeight] * 2
    assert [type(part.o.weight) for part in weights[:2]] == [QuantisedWeight, DenseWeight]
    whole = all_logits(model, token_ids, [40])
    dense = all_logits(load_model(config, iter_weights(source, config), 64), token_ids, [40])
    assert 0 < np.abs(whole - dense).mean() < 0.05 * np.abs(dense).mean()
    chunked = all_logits(model, token_ids, [1, 20, *[1] * 10, 9])
    assert (chunked == whole).all(), "chunks must not change a bit"
    assert (all_logits(model, token_ids, [40], Decoder.forward_op_by_op) == whole).all(), "nor may the fused block"
    twin, kept = Decoder(config, 64), copies_of(model)
    twin.take_ready_tensors(kept, expected_tensors(config), kinds)
    assert (all_logits(twin, token_ids, [40]) == whole).all(), "nor may kept weights"
    with pytest.raises(ValueError, match="not those of the model"):
        Decoder(config, 64).take_ready_tensors(kept, expected_tensors(config))
    # Of a matmul with one dense matrix all are.
    del kinds["model.layers.0.self_attn.v_proj.weight"]
    mixed = load_model(config, iter_stored_weights(source, config, kinds), 64)
    assert type(mixed.layers[0].attention.qkv.weight) is DenseWeight
    assert np.abs(all_logits(mixed, token_ids, [40]) - dense).mean() < 0.05 * np.abs(dense).mean()
    assert [*Decoder(config, 64)._ready_shapes(expected_tensors(config), kinds)[0].items()] == [
        (name, tuple(tensor.shape)) for name, tensor in mixed.ready_tensors().items()
    ]


def test_untied_heads_and_biases_are_among_the_references():
    configs = [json.loads((path / "config.json").read_text()) for path in GOLDEN.iterdir() if path.is_dir()]
    assert {bool(config.get("tie_word_embeddings")) for config in configs} == {True, False}
    assert any(config.get("attention_bias") for config in configs)


@pytest.fixture(scope="module")
def smollm2(smollm2_source):
    engine = load_engine(EngineConfig(max_num_batched_tokens=256, weight_format="float32"))
    yield engine
    engine.close()


@pytest.mark.slow
def test_smollm2_greedy_text_matches_transformers(smollm2, smollm2_tokenizer):
    cases = json.loads((GOLDEN / "smollm2_greedy.json").read_text())["cases"]
    assert len(cases) >= 10
    requests = [
        request(str(i), case["prompt_token_ids"], max_tokens=len(case["token_ids"])) for i, case in enumerate(cases)
    ]
    answers = smollm2.generate(requests)
    for index, case in enumerate(cases):
        tokens = tokens_of(answers[str(index)])
        assert tokens == case["token_ids"], case["rendered"]
        assert smollm2_tokenizer.decode(tokens) == case["text"]


@pytest.mark.slow
def test_smollm2_logits_match_transformers(smollm2):
    reference = np.load(GOLDEN / "smollm2_first_logits.npz")
    logits = all_logits(smollm2.executor.model, reference["token_ids"], [len(reference["token_ids"])])
    for row, name in ((0, "first"), (-1, "last")):
        difference = np.abs(logits[row] - reference[name]).max()
        assert difference < 1e-5 * np.abs(reference[name]).max(), f"{name}: {difference}"


@pytest.mark.slow
def test_smollm2_with_a_rounded_kv_cache_stays_close_to_float32(smollm2, smollm2_tokenizer, monkeypatch):
    """Rounding to bfloat16 or int8 alone: weights are float32."""
    model = smollm2.executor.model
    token_ids = np.array(smollm2_tokenizer.encode(topics["types"])[:256])
    logs = {}
    for dtype in CPU_TYPES:
        monkeypatch.setattr(model.device, "kv_cache_dtype", dtype)
        logits = all_logits(model, token_ids, [128, 128]).astype(np.float64)
        logs[dtype] = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    exact = logs["float32"]
    divergence = {dtype: (np.exp(exact) * (exact - log)).sum(axis=1).mean() for dtype, log in logs.items()}
    assert 0 < divergence["bfloat16"] < 0.0002
    assert divergence["bfloat16"] < divergence["int8"] < 0.003


@pytest.mark.slow
def test_smollm2_from_its_stored_weights_answers_as_ever_and_stays_close_to_float32(smollm2_source, smollm2):
    """tests/golden/make_stored.py wrote the tokens: on every processor they are these."""
    cases = json.loads((GOLDEN / "smollm2_stored.json").read_text())[::3]
    engine = load_engine(EngineConfig(max_num_batched_tokens=256, weight_format="stored"))
    try:
        prompts = [request(str(i), ids, max_tokens=len(tokens)) for i, (ids, tokens) in enumerate(cases)]
        answers = engine.generate(prompts)
        assert [tokens_of(answers[str(i)]) for i in range(len(cases))] == [tokens for _, tokens in cases]
        model = engine.executor.model
        held = sum(tensor.element_size() * int(np.prod(tensor.shape)) for tensor in model.ready_tensors().values())
        assert held < 1.2 * smollm2_source.path.stat().st_size
        token_ids = np.array(cases[0][0] + cases[0][1])
        stored, dense = (all_logits(m, token_ids, [len(token_ids)]) for m in (model, smollm2.executor.model))
    finally:
        engine.close()
    log_p, log_q = (x - np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True) for x in (dense, stored))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert 0 < divergence.mean() < 0.01
