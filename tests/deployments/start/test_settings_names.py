"""Settings as they are typed: dashes, vLLM's names, files and models, and what is said of those that are not known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.config import LLMConfig
from cluster.errors import BiremeError
from deployments.start.serve_config import BUILDER, configured_model, serve_config
from deployments.start.settings_names import check_name, known_names, split_settings
from deployments.start.vllm_names import ALIASES, ELSEWHERE, MEANS_NOTHING, is_switch


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--max-num-seqs", "8"], "max_num_seqs", 8),
        (["--max-num-seqs=8"], "max_num_seqs", 8),
        (["max-num-seqs=8"], "max_num_seqs", 8),
        (["--served-model-name", "m"], "model_id", "m"),
        (["owner/name", "--served-model-name", "m", "n/o", "p", "--max-num-seqs", "8"], "model_aliases", ["n/o", "p"]),
        (["owner/name", "--served-model-name", "m", "n", "max_num_seqs=8"], "model_id", "m"),
        (["--served-model-name", "m", "owner/name"], "model", "owner/name"),
        (["--max-model-len", "8k"], "max_model_len", 8000),
        (["--max-model-len=8K"], "max_model_len", 8192),
        (["--max-num-batched-tokens", "2.5k"], "max_num_batched_tokens", 2500),
        (["max_num_batched_tokens=2k"], "max_num_batched_tokens", 2000),
        (["num_kv_blocks=1m"], "num_kv_blocks", 1_000_000),
        (["--device", "cuda"], "device", "gpu"),
        (["--model-id", "8k"], "model_id", "8k"),
        (["served_model_name=m"], "model_id", "m"),
        (["--num-gpu-blocks-override", "64"], "num_kv_blocks", 64),
        (["--dtype", "half"], "dtype", "float16"),
        (["--kv-cache-dtype", "int8"], "kv_cache_dtype", "int8"),
        (["--enforce-eager"], "enforce_eager", True),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--gpu-memory-utilization", "0.5", "--tensor-parallel-size", "1"], "gpu_memory_utilization", 0.5),
        (["--enable-auto-tool-choice", "--tool-call-parser", "hermes"], "tool_call_parser", "hermes"),
        (["--data-parallel-size", "2"], "deployment_config", {"num_replicas": 2}),
        (["-dp", "2"], "deployment_config", {"num_replicas": 2}),
        (["--enable-prefix-caching", "false"], "enable_prefix_caching", False),
        (["--no-async-scheduling"], "enable_overlap_schedule", False),
    ],
)
def test_flags_and_names_of_vllm_are_settings(typed, name, value):
    assert getattr(configured_model(serve_config(typed)), name) == value


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["max_num_seq=8"], "unknown setting max_num_seq; did you mean max_num_seqs?"),
        (["--max-model-length", "8"], "unknown setting --max-model-length; did you mean --max-model-len?"),
        (["--max_num_seq", "8"], "unknown setting --max_num_seq; did you mean --max-num-seqs?"),
        (["--prot", "8001"], "unknown setting --prot; did you mean --port?"),
        (["--disable-log-request"], "did you mean --disable-log-requests?"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size is not supported: .* num_replicas"),
        (["--quantization=awq"], "--quantization is not supported: the nearest is a GGUF file"),
        (["--trust-remote-code"], "--trust-remote-code is not supported: "),
        (["--api-key", "secret"], "--api-key: .*api_keys_file"),
        (["--api-keys", "secret"], "--api-keys: .*api_keys_file"),
        (["--seed", "42"], "--seed is not supported: requests have a seed"),
        (["--revision", "abc"], "--revision is not supported: download the revision"),
        (["--enable-lora", "owner/name"], "--enable-lora is not supported: adapters"),
        (["-tp", "2"], "-tp is not supported: .* num_replicas"),
        (["--no-enable-chunked-prefill"], "--enable-chunked-prefill is not supported: long prompts"),
        (["--ssl-keyfile", "key.pem"], "--ssl-keyfile is not supported: TLS ends at a proxy"),
        (["--max-num-seqs"], "--max-num-seqs needs a value"),
        (["--max-num-seqs", "--dtype", "half"], "--max-num-seqs needs a value"),
        (["smollm2", "max_num_seqs=8", "more"], "'more' is no setting"),
        (["smollm2-135m-instrct"], "did you mean smollm2-135m-instruct?"),
        (["smollm2-135m"], "did you mean smollm2-135m-instruct?"),
        (["enable_prefix=true"], "did you mean enable_prefix_caching?"),
        (["max_num=3"], "unknown setting max_num; docs/configure.md has them all"),
        (
            ["--compilation-config.mode", "3"],
            "--compilation-config.mode is not supported: the nearest are enforce_eager",
        ),
        (
            ["--attention-config.flash_attn", "false"],
            "--attention-config.flash_attn is not supported: kernels are chosen",
        ),
        (["-O3"], "-O is not supported: the nearest are enforce_eager"),
        (["-dcp", "2"], "-dcp is not supported: an engine computes on one device"),
        (["--disable-fastapi-docs"], "--disable-fastapi-docs is not supported: GET /docs"),
        (["--max-model-len", "auto"], "max_model_len auto is not supported: leave it out for the model's own limit"),
        (["--max-model-len", "-1"], "max_model_len -1 is not supported: leave it out for the model's own limit"),
        (["--max-model-len", "1.5K"], 'max_model_len: must be an integer, got "1.5K"'),
        (["--max-model-len", "1.0005k"], 'max_model_len: must be an integer, got "1.0005k"'),
        (["--max-model-len", "8kk"], 'max_model_len: must be an integer, got "8kk"'),
        (["--max-model-len", "9t"], "max_model_len: must be at most 1048576, got 9000000000000"),
        (["--kv-cache-memory-bytes", "1G"], "--kv-cache-memory-bytes is not supported: kv_cache_memory_gb, in GiB"),
        (["owner/name", "--served-model-name", "m", "n", "n"], 'model_aliases: name 1 must be another one .*, got "n"'),
        (
            ["--kv-cache-dtype", "fp8"],
            'kv_cache_dtype: must be "auto", "float32", "bfloat16" or "int8", got "fp8"',
        ),
        (["num_replicas=0"], "num_replicas: got '0', allowed: 1 and more"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_near(typed, message):
    with pytest.raises(BiremeError, match=message) as raised:
        configured_model(serve_config(typed))
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    ("typed", "settings", "said"),
    [
        (["--disable-log-requests"], {}, "--disable-log-requests changes nothing here: request_log says"),
        (["--swap-space", "4"], {}, "--swap-space changes nothing here: "),
        (["--seed", "0"], {}, "--seed 0 changes nothing here: requests have a seed"),
        (["-tp", "1"], {}, "-tp 1 changes nothing here: an engine computes on one device"),
        (["--enable-chunked-prefill"], {}, "--enable-chunked-prefill true changes nothing here: long prompts"),
        (["--watermark", "0.01"], {}, "--watermark changes nothing here: the engine does this its own way"),
        (["--disable-hybrid-kv-cache-manager"], {}, "--disable-hybrid-kv-cache-manager changes nothing here: "),
        (
            ["--disable-access-log-for-endpoints", "/health"],
            {},
            "--disable-access-log-for-endpoints changes nothing here: request",
        ),
        (
            ["--structured-outputs-config.backend", "xgrammar"],
            {},
            "--structured-outputs-config.backend changes nothing here: ",
        ),
        (["--language-model-only"], {}, "--language-model-only true changes nothing here: models that see"),
        (["--no-enable-lora"], {}, "--enable-lora false changes nothing here: adapters"),
        (
            ["--load-format", "safetensors"],
            {"load_format": "auto"},
            "--load-format safetensors is load_format=auto here",
        ),
    ],
)
def test_options_of_vllm_that_change_nothing_are_accepted_with_a_sentence(typed, settings, said):
    sentences: list[str] = []
    assert split_settings([*typed, "owner/name"], sentences.append) == (["owner/name"], settings)
    (sentence,) = sentences
    assert sentence.startswith(said)


def test_every_option_of_vllm_is_decided():
    """Of its engine and its server, in the versions that were looked at."""
    options = Path(__file__).with_name("vllm_options.txt").read_text().split()
    decided = {*known_names(), *ELSEWHERE, *MEANS_NOTHING}
    assert not [name for name in options if check_name(f"--{name.replace('_', '-')}") not in decided]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("max_num_seq", "max_num_seqs"),
        ("maxnumseqs", "max_num_seqs"),
        ("max_seqs", "max_num_seqs"),
        ("gpu_mem_utilization", "gpu_memory_utilization"),
        ("dtpye", "dtype"),
        ("Max_Model_Len", "max_model_len"),
        ("speculative_configs", "speculative_config"),
        # One word is another one, and so it is another option.
        ("enable_lora_width", None),
        ("max_num_planned_tokens", None),
        ("weight_export_config", None),
        ("kv_import_config", None),
        ("mm_processor_cache_limit", None),
        ("enable_batching", None),
    ],
)
def test_a_name_is_suggested_where_it_is_near(typed, meant):
    for flag, dashes in ((typed, False), (f"--{typed.replace('_', '-')}", True)):
        with pytest.raises(BiremeError) as raised:
            check_name(flag)
        hint = "; docs/configure.md has them all"
        if meant is not None:
            hint = f"; did you mean {'--' + meant.replace('_', '-') if dashes else meant}?"
        assert raised.value.message == f"unknown setting {flag}{hint}"


def test_every_name_that_a_file_may_have_is_known_on_the_command_line():
    for name in (*ELSEWHERE, *MEANS_NOTHING):
        flag = f"--{name.replace('_', '-')}"
        typed = [flag] if is_switch(name) else [flag, "x"]
        said: list[str] = []
        try:
            split_settings(typed, said.append)
        except BiremeError as error:
            said.append(error.message)
        if name not in ALIASES:
            (sentence,) = said
            assert re.match(rf"{flag}.* (is not supported|changes nothing here): ", sentence), sentence
        with pytest.raises(BiremeError, match=rf"{name} is no setting: |it is {ALIASES.get(name)} here"):
            configured_model({"applications": [{"args": {name: "x"}}]})


def test_a_model_or_a_file_comes_first_and_settings_before_what_it_says(tmp_path: Path):
    model = tmp_path / "a=b.gguf"
    model.write_bytes(b"")
    assert configured_model(serve_config([str(model), "max_num_seqs=2"])).model == str(model)
    assert configured_model(serve_config(["--max-num-seqs", "2", str(tmp_path)])).model == str(tmp_path)
    assert configured_model(serve_config(["owner/name"])).model == "owner/name"
    with pytest.raises(BiremeError, match=r"did you mean a=b.gguf"):
        serve_config([str(tmp_path / "ab.gguf")])
    file = tmp_path / "serve.yaml"
    arguments = {"max_num_seqs": 3, "block_size": 32, "deployment_config": {"max_ongoing_requests": 5}}
    application = {"import_path": BUILDER, "args": arguments}
    file.write_text(yaml.safe_dump({"applications": [application]}))
    found = configured_model(serve_config([str(file), "max_num_seqs=4", "--num-replicas", "2"]))
    assert (found.max_num_seqs, found.block_size) == (4, 32)
    assert found.deployment_config == {"max_ongoing_requests": 5, "num_replicas": 2}
    (tmp_path / "serve.json").write_text(json.dumps({"applications": [application]}))
    assert configured_model(serve_config([str(tmp_path / "serve.json")])).block_size == 32
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    hyperparameters = str(tmp_path / "config.json")
    assert configured_model(serve_config([hyperparameters, "load_format=dummy"])).model == hyperparameters
    file.write_text(yaml.safe_dump({"applications": [application, application]}))
    with pytest.raises(BiremeError, match="2 applications"):
        serve_config([str(file), "max_num_seqs=4"])


def test_names_that_stand_for_others_are_none_of_ours():
    assert not set(ALIASES) & set(LLMConfig.model_fields)
    assert set(ALIASES.values()) <= set(known_names())
    assert not {*ELSEWHERE, *MEANS_NOTHING} & set(known_names())
    assert not set(ELSEWHERE) & set(MEANS_NOTHING)
    assert split_settings([f"{name}=1" for name in known_names()]) == ([], dict.fromkeys(known_names(), "1"))
