"""Sampling parameters of the model hold where a request names none, and a resumed request keeps those it began with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from actors.model_files.source import resolve_model
from cluster.api_errors import ApiError
from cluster.config import DEFAULT_MODEL, LLMConfig
from cluster.errors import ModelLoadError
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.requests.protocol import ChatCompletionRequest, CompletionRequest, parse_request
from deployments.openai_api.requests.sampling import ModelLimits, sampling_params
from deployments.openai_api.requests.sampling_defaults import SamplingDefaults, sampling_defaults
from deployments.openai_api.service import Caller, OpenAiService
from tests.actors.model_files.gguf_writer import random_tensors, tensor_shapes, write_gguf
from tests.actors.text.tiny_tokenizer import byte_tokenizer
from tests.deployments.openai_api.points import point_of
from tests.deployments.played_engines import Engines
from tests.engines import write_tiny_model

FILE = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "max_new_tokens": 9,
    "eos_token_id": 5,
    "bos_token_id": None,
}
READ = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05, "max_tokens": 9}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def defaults_of(folder: Path, setting: str = "auto", file: dict[str, Any] | None = None) -> SamplingDefaults:
    write_tiny_model(folder / "model")
    if file is not None:
        (folder / "model" / "generation_config.json").write_text(json.dumps(file))
    model = str(folder / "model")
    return sampling_defaults(
        LLMConfig(model=model, generation_config=setting), resolve_model(model, load_format="dummy")
    )


def test_they_are_read_where_the_setting_says(tmp_path: Path):
    assert defaults_of(tmp_path).shown() == {}
    assert defaults_of(tmp_path, file=FILE).shown() == READ
    assert defaults_of(tmp_path, "none", FILE) == SamplingDefaults()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelLoadError, match=r"generation_config is .*; allowed: auto, none, or a directory"):
        defaults_of(tmp_path, str(tmp_path / "mine"), FILE)
    (tmp_path / "mine" / "generation_config.json").write_text('{"top_k": 50.0}')
    assert defaults_of(tmp_path, str(tmp_path / "mine"), FILE).shown() == {"top_k": 50}


def test_those_of_a_gguf_file_and_of_the_default_model(tmp_path: Path, smollm2_source):
    extra = {"general.sampling.temp": 0.6, "general.sampling.top_k": 40}
    file = write_gguf(tmp_path / "m.gguf", random_tensors(tensor_shapes()), extra=extra)
    found = sampling_defaults(LLMConfig(model=str(file)), resolve_model(str(file)))
    assert found.shown() == {"temperature": 0.6, "top_k": 40}
    assert sampling_defaults(LLMConfig(), smollm2_source).shown() == {"temperature": 0.2, "top_p": 0.9}
    assert LLMConfig().model == DEFAULT_MODEL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 3.0),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", 1.5),
        ("min_p", True),
        ("max_new_tokens", 0),
    ],
)
def test_a_value_that_no_request_may_have_is_refused_by_name(tmp_path: Path, name: str, value: Any):
    with pytest.raises(
        ModelLoadError, match=rf"generation_config\.json: {name.replace('new_', '')} is {re.escape(json.dumps(value))}"
    ):
        defaults_of(tmp_path, file={name: value})


@pytest.mark.parametrize("kind", [CompletionRequest, ChatCompletionRequest])
def test_what_a_request_says_wins(tmp_path: Path, kind):
    defaults = defaults_of(tmp_path, file=FILE)
    limits = ModelLimits(64, 100, defaults.max_tokens)
    prompt: dict[str, Any] = {"prompt": "x"} if kind is CompletionRequest else CHAT

    def params(**fields: Any) -> dict[str, Any]:
        made = sampling_params(parse_request(kind, prompt | fields, defaults.values), 4, 0, limits)
        return {name: getattr(made, name) for name in READ}

    assert params() == READ
    assert params(temperature=None, top_p=None) == READ
    own = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 30}
    assert params(**own) == own
    assert params(temperature=1.0) == READ | {"temperature": 1.0}
    assert sampling_params(parse_request(kind, prompt), 4, 0, ModelLimits(64, 100)).temperature == 1.0


async def test_an_answer_goes_on_only_where_its_defaults_hold():
    tokenizer = byte_tokenizer()

    def service(**values: Any) -> OpenAiService:
        limits, defaults = ModelLimits(64, tokenizer.vocab_size), SamplingDefaults(values)
        engines = Engines([0])
        engines.events = RequestEvents()
        return OpenAiService(engines, tokenizer, "m", limits, 4, defaults=defaults)

    def resumed(fingerprint: str) -> dict[str, Any]:
        has = {"fingerprint": fingerprint, "choices": [{"token_ids": [3]}]}
        return CHAT | {"stream": True, "return_token_ids": True, "seed": 1, "resume": has}

    generation, answer = await service(top_k=5).chat(CHAT)
    generation.choices[0].entry.fingerprint = "bireme-1"
    await generation.read()
    seen = answer.whole()["system_fingerprint"]
    assert seen.startswith("bireme-1+")
    prompts = answer.prompt_ids

    def caller(body: dict[str, Any]) -> Caller:
        return Caller(resumed=point_of(body, prompts)._replace(answer_id="chatcmpl-" + "0" * 32))

    generation, answer = await service(top_k=5).chat(resumed(seen), caller(resumed(seen)))
    assert generation.choices[0].entry.fingerprint == "bireme-1"
    for other, fingerprint in ((service(top_k=6), seen), (service(), seen), (service(top_k=5), "bireme-1")):
        with pytest.raises(ApiError, match="other sampling defaults") as caught:
            await other.chat(resumed(fingerprint), caller(resumed(fingerprint)))
        assert (caught.value.status, caught.value.code) == (503, "fingerprint_mismatch")
    assert service().defaults.mark("bireme-1") == "bireme-1"
