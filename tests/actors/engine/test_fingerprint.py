"""The fingerprint changes with whatever changes the bits of an answer, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors.device.choice import choose_device
from actors.device.cpu import CpuDevice
from actors.engine import fingerprint as fingerprint_module
from actors.engine.fingerprint import (
    CONTENT,
    KEEPS_BITS,
    OF_ANSWERS,
    OF_DUMMY_WEIGHTS,
    OF_QUANTISED_FILES,
    OF_THE_KV_CACHE,
    ON_A_GPU,
    fingerprint,
)
from actors.model_files.source import resolve_model
from actors.structured_output import library
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from cluster.routing.fingerprint import can_continue, of_answer
from gpu_ops.kv_cache import CPU_TYPES
from tests.engines import answer, make_engine, request, write_quantised_model

# Another value of each setting that keeps the bits, as far as a CPU engine takes another one.
OTHER_VALUES = {
    "block_size": 64,
    "decode_graph_memory_gb": 1.0,
    "device": "cpu",
    "enable_overlap_schedule": False,
    "enable_prefix_caching": False,
    "enforce_eager": True,
    "gpu_memory_utilization": 0.5,
    "hang_timeout_s": 9.0,
    "kv_cache_memory_gb": 0.5,
    "max_model_len": 128,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 2,
    "max_queue_share": 1.0,
    "max_queued_requests": 9,
    "model_id": "other",
    "num_kv_blocks": 33,
    "num_threads": 2,
    "oldest_first_every": 1,
    "prefill_delay_steps": 3,
    "ready_weights_gb": 0.0,
    "weights_from_peers": False,
    "simulated_step_s": 0.5,
    "simulated_token_s": 0.5,
}


class Gpu(CpuDevice):
    """What the fingerprint reads of a GPU."""

    is_gpu = True
    name = "NVIDIA H200"
    math_version = "cuBLASLt 120501"
    dtype = "bfloat16"


def of(folder, on=None, **settings) -> str:
    config = EngineConfig(model=str(folder), load_format="dummy", **settings)
    source = resolve_model(str(folder), load_format="dummy", seed=config.dummy_seed)
    return fingerprint(config, source, on or CpuDevice())


def test_every_setting_is_one_that_changes_bits_or_one_that_keeps_them():
    kinds = [CONTENT, OF_ANSWERS, OF_DUMMY_WEIGHTS, OF_QUANTISED_FILES, OF_THE_KV_CACHE, ON_A_GPU, KEEPS_BITS]
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds)), "a setting is of two kinds"
    assert frozenset().union(*kinds) == set(EngineConfig.model_fields)
    assert set(OTHER_VALUES) == KEEPS_BITS


def test_engines_that_report_other_logprobs_do_not_continue_each_others_answers(tiny_model):
    assert of(tiny_model, logprobs_mode="processed") != of(tiny_model)


@pytest.fixture(scope="module")
def expected(tiny_model):
    """An answer under the settings of the other tests."""
    return _answer(tiny_model)


def _answer(folder, **settings):
    engine = make_engine(folder, **settings)
    sampled = request("a", list(range(3, 60)), max_tokens=40, temperature=0.9, top_p=0.9, seed=5, logprobs=3)
    neighbours = [request(f"n{i}", [i + 3] * 20, max_tokens=20) for i in range(2)]
    deltas = engine.generate([*neighbours, sampled])
    engine.close()
    return answer(deltas["a"])


@pytest.mark.parametrize("name", sorted(KEEPS_BITS))
def test_a_setting_that_is_left_out_changes_neither_fingerprint_nor_bits(tiny_model, expected, name):
    changed = {name: OTHER_VALUES[name]}
    assert of(tiny_model, **changed) == of(tiny_model)
    assert _answer(tiny_model, **changed) == expected


@pytest.mark.parametrize("name", ["name", "dtype", "batch_invariant", "math_version"])
def test_card_type_invariance_and_libraries_of_a_gpu_change_it(tiny_model, name):
    other = Gpu()
    setattr(
        other,
        name,
        {"name": "NVIDIA H100", "dtype": "float16", "batch_invariant": True, "math_version": "cuBLASLt 130000"}[name],
    )
    assert len({of(tiny_model), of(tiny_model, Gpu()), of(tiny_model, other)}) == 3


def test_fingerprint_depends_on_content_not_on_place(tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert of(tiny_model) == of(copy)
    assert of(tiny_model, num_kv_blocks=99, max_num_seqs=3) == of(tiny_model)
    assert of(tiny_model, dummy_seed=1) != of(tiny_model)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("10000.0", "20000.0"))
    assert of(tiny_model) != of(copy)


def test_what_ends_a_generation_changes_it_wherever_it_stands(tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 2}')
    assert of(copy) == of(tiny_model)
    (copy / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert of(copy) != of(tiny_model)


def test_tokenizer_and_sources_of_the_ops_change_it(tiny_model, tmp_path, monkeypatch):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    before = of(copy)
    (copy / "tokenizer.json").write_text("{}")
    with_tokenizer = of(copy)
    (copy / "tokenizer_config.json").write_text("{}")
    assert len({before, with_tokenizer, of(copy)}) == 3
    monkeypatch.setattr("actors.engine.fingerprint.sources_hash", lambda: "other")
    assert of(copy) not in (before, with_tokenizer)


def test_another_version_of_the_project_changes_it(tiny_model, monkeypatch):
    before = of(tiny_model)
    monkeypatch.setattr("actors.engine.fingerprint.__version__", "0.0.0")
    assert of(tiny_model) != before


def test_what_follows_grammars_counts_for_answers_under_one_alone(tiny_model, monkeypatch):
    engine = of(tiny_model)
    monkeypatch.setattr(fingerprint_module, "grammar_rules", lambda: "another")
    other = of(tiny_model)
    assert other != engine and of_answer(other, is_masked=False) == of_answer(engine, is_masked=False)
    for is_masked in (False, True):
        begun = of_answer(engine, is_masked)
        assert can_continue(engine, begun)
        assert can_continue(other, begun) is not is_masked
    assert not can_continue(engine, "") and not can_continue(engine, of_answer(engine, False)[:-1])


def test_the_rules_of_grammars_are_the_librarys_release_and_our_code(monkeypatch):
    rules = library.grammar_rules.__wrapped__
    now = rules()
    with monkeypatch.context() as patched:
        patched.setattr(library, "library_version", lambda: "llguidance 0")
        assert rules() != now
    read = Path.read_bytes
    for name in ("native.py", "thinking.py", "vocabulary.py", "grammar.py", "reasoning.py"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", lambda file, name=name: read(file) + b"#" * (file.name == name))
            assert rules() != now, name
    assert rules() == now == library.grammar_rules()


def test_what_the_weight_format_comes_to_changes_it(tiny_model, tmp_path):
    file = write_quantised_model(tmp_path)

    def of_file(**settings) -> str:
        return fingerprint(EngineConfig(model=str(file), **settings), resolve_model(str(file)), CpuDevice())

    assert of_file() == of_file(weight_format="stored") != of_file(weight_format="float32")
    assert of(tiny_model) == of(tiny_model, weight_format="float32")
    for refused in (lambda: of(tiny_model, weight_format="stored"), lambda: of(file, Gpu(), weight_format="stored")):
        with pytest.raises(ConfigError, match=r"weight_format: .* got stored; allowed here: auto, float32"):
            refused()


def test_the_type_of_the_kv_cache_changes_it(tiny_model):
    def with_cache_of(dtype: str) -> str:
        return of(tiny_model, choose_device(EngineConfig(device="cpu", kv_cache_dtype=dtype)), kv_cache_dtype=dtype)

    assert with_cache_of("auto") == with_cache_of("float32") == of(tiny_model)
    assert len({with_cache_of(dtype) for dtype in CPU_TYPES}) == len(CPU_TYPES)
