"""The library gives the server's tokens, from the caller's own process."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import jsonschema
import pytest

from bireme import LLM, SamplingParams
from cluster.config import EngineConfig, LLMConfig
from cluster.errors import ConfigError, EngineDeadError, InvalidRequestError
from cluster.grammar import CHOICE, JSON_SCHEMA, REGEX, Grammar
from deployments.offline.settings import LLMSettings
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.deployments.conftest import App
from tests.deployments.openai_api.tool_tokenizer import tool_tokenizer
from tests.engines import TINY_CONFIG, write_tiny_model
from tests.served_device import served_on_device

ROOT = Path(__file__).resolve().parents[3]
QUESTION = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def llm(smollm2_source):
    # Short, because an answer without max_tokens and with a seed of its own may run to the end of the context.
    with LLM(**served_on_device(max_num_seqs=4, max_model_len=256)) as made:
        yield made


def engine_is_idle(llm: LLM) -> bool:
    def look(engine) -> bool:
        engine.check_integrity()
        return not engine.scheduler.running and not engine.scheduler.waiting

    return llm._client._engine_loop.call(look).result(10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_has_the_tokens_of_the_server(app: App, llm: LLM, temperature):
    params = SamplingParams(temperature=temperature, seed=11, max_tokens=24, logprobs=2, stop=("\n\n",))
    (output,) = llm.generate("The sea is", params, n=2)
    body = {
        "prompt": "The sea is",
        "temperature": temperature,
        "seed": 11,
        "max_tokens": 24,
        "n": 2,
        "logprobs": 2,
        "top_p": 1,
    }
    answer = app.post("/v1/completions", {**body, "stop": ["\n\n"], "return_token_ids": True}).json()
    assert [(one.text, one.token_ids, one.finish_reason) for one in output.outputs] == [
        (choice["text"], choice["token_ids"], choice["finish_reason"]) for choice in answer["choices"]
    ]
    assert [entry.logprob for entry in output.outputs[0].logprobs] == answer["choices"][0]["logprobs"]["token_logprobs"]
    assert output.prompt_token_ids == answer["choices"][0]["prompt_token_ids"]
    assert output.fingerprint == answer["system_fingerprint"].partition("+")[0]


def test_a_prompt_may_be_vllms_mapping(llm: LLM):
    params = SamplingParams(temperature=0.0, max_tokens=4)
    (plain,) = llm.generate("The sea is", params)
    mappings = [{"prompt": "The sea is"}, {"prompt_token_ids": plain.prompt_token_ids}]
    (alone,), both = llm.generate(mappings[0], params), llm.generate(mappings, params)
    assert [one.outputs[0].token_ids for one in (alone, *both)] == [plain.outputs[0].token_ids] * 3
    assert alone.prompt == "The sea is"


def test_a_chat_without_parameters_is_the_servers_with_the_seed_that_it_tells(app: App, llm: LLM):
    (output,) = llm.chat(QUESTION)
    # The server's context is longer than the library's here.
    length = {"max_tokens": len(output.outputs[0].token_ids)}
    body = {"messages": QUESTION, "seed": output.seed, "return_token_ids": True, **length}
    answer = app.post("/v1/chat/completions", body)
    assert output.outputs[0].token_ids == answer.json()["choices"][0]["token_ids"]
    assert output.text == answer.json()["choices"][0]["message"]["content"]
    assert output.prompt is None


def test_outputs_come_in_the_order_of_their_prompts_and_each_is_its_own(llm: LLM):
    prompts = [f"Number {i} is" for i in range(20)]
    params = [SamplingParams(seed=i, max_tokens=1 + i % 5) for i in range(20)]
    together = llm.generate(prompts, params)
    assert [output.prompt for output in together] == prompts
    for i in (0, 7, 19):
        (alone,) = llm.generate([together[i].prompt_token_ids], params[i])
        assert (alone.outputs, alone.prompt) == (together[i].outputs, None)
    assert llm.generate([]) == []
    assert engine_is_idle(llm)


def test_bad_words_and_allowed_tokens_bind_answers_here_as_over_http(llm: LLM):
    params = SamplingParams(temperature=0.0, max_tokens=8)
    (free,), (bound,) = llm.generate("The sea is", params), llm.generate("The sea is", params, bad_words=[" a"])
    assert " a " in free.text
    assert " a " not in bound.text
    (few,) = llm.generate("The sea is", SamplingParams(max_tokens=8, allowed_token_ids=(40, 41), ignore_eos=True))
    assert set(few.outputs[0].token_ids) <= {40, 41}


def test_conversations_are_one_or_several(llm: LLM):
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0)
    alone, several = llm.chat(QUESTION, params), llm.chat([QUESTION, QUESTION], params)
    assert [one.outputs for one in several] == [alone[0].outputs] * 2
    assert len(alone[0].outputs[0].logprobs) == len(alone[0].outputs[0].token_ids)


def test_calls_that_a_grammar_makes_behind_a_budget_of_reasoning_go_on_where_a_client_has_them(llm: LLM):
    """The engine is real, the template a request's own: the default model's knows no tools and no reasoning."""
    chats = ChatPrompts(llm.tokenizer, trust_request_chat_template=True)
    limits = ModelLimits(llm.max_model_len, llm.tokenizer.vocab_size)
    service = OpenAiService(llm._client, llm.tokenizer, "m", limits, 4, chats)
    schema = {
        "type": "object",
        "properties": {"river": {"type": "string", "maxLength": 8}, "long": {"type": "boolean"}},
        "required": ["river", "long"],
        "additionalProperties": False,
    }
    template = "{{ tools | tojson }}<tool_call>{{ messages[0].content }}<think>{# </think> #}"
    body = {
        "messages": QUESTION, "tools": [{"function": {"name": "note", "parameters": schema}}], "tool_choice": "required",
        "chat_template": template, "parallel_tool_calls": False, "temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 120,
        "thinking_token_budget": 9, "stream": True, "return_token_ids": True,
    }  # fmt: skip

    def answered(body: dict, caller: Caller) -> tuple[list[dict], list[str]]:
        async def run() -> tuple[list[dict], list[str]]:
            generation, answer = await service.chat(body, caller)
            chunks, ids = [], []
            while not generation.finished:
                chunks += answer.chunks(await generation.read())
                ids += answer.event_ids
            generation.close()
            return chunks, ids

        return llm._call(run())

    def told(chunks: list[dict]) -> list[dict]:
        made = [{"token_ids": [], "reasoning": "", "calls": {}, "ends": None} for _ in range(2)]
        for chunk in chunks:
            for choice in chunk["choices"]:
                one = made[choice["index"]]
                one["token_ids"] += choice["token_ids"]
                one["ends"] = choice["finish_reason"] or one["ends"]
                one["reasoning"] += choice["delta"].get("reasoning") or ""
                for call in choice["delta"].get("tool_calls", ()):
                    known = one["calls"].setdefault(call["index"], {"id": call.get("id"), "arguments": ""})
                    known["arguments"] += call["function"]["arguments"]
        return made

    chunks, ids = answered(body, Caller())
    undisturbed = told(chunks)
    end = llm.tokenizer.encode("</think>", add_special_tokens=False)
    for one in undisturbed:
        assert one["token_ids"][9 : 9 + len(end)] == end and len(end) > 1
        assert llm.tokenizer.decode(one["token_ids"][:9]).strip() == one["reasoning"]
        assert one["ends"] == "tool_calls" and len(one["calls"]) == 1
        jsonschema.validate(json.loads(one["calls"][0]["arguments"]), schema)
    # Within the reasoning, within its end, and within the call.
    for cut in (12, 22, len(chunks) // 2, len(chunks) - 1):
        has = [{"token_ids": one["token_ids"], "finish_reason": one["ends"]} for one in told(chunks[:cut])]
        resume = {"fingerprint": chunks[cut - 1]["system_fingerprint"], "choices": has}
        rest, _ = answered({**body, "resume": resume}, Caller(resumed=service.resume_point(ids[cut - 1])))
        assert told(chunks[:cut] + rest) == undisturbed
    assert engine_is_idle(llm)


async def test_it_works_where_an_event_loop_runs_as_in_notebooks(llm: LLM):
    (output,) = llm.generate("a", SamplingParams(max_tokens=2))
    assert len(output.outputs[0].token_ids) == 2
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a", ""]}, r"prompts\[1\]: prompt has no tokens"),
        ({"prompts": ["a", [10**6]]}, r"prompts\[1\]: prompt.0: token ids of this model are below 49152"),
        ({"prompts": ["a", {"text": "b"}]}, r"prompts\[1\]: must be a text, a list of token ids, "),
        ({"prompts": [None]}, r"prompts\[0\]: must be a text"),
        ({"prompts": 5}, "prompts: must be a text"),
        ({"prompts": b"ab"}, "prompts: must be a text"),
        ({"prompts": ["a", b"ab"]}, r"prompts\[1\]: must be a text"),
        ({"prompts": [{"prompt_token_ids": bytearray(b"ab")}]}, r"prompts\[0\]: must be a text"),
        ({"prompts": "a", "n": 0}, "^n: "),
        ({"prompts": ["a", "b"], "sampling_params": [SamplingParams()]}, "1 entries for 2 prompts"),
        ({"prompts": "a", "sampling_params": SamplingParams(stop_token_ids=(10**6,))}, "stop_token_ids.0"),
    ],
)
def test_what_is_at_fault_is_named_and_nothing_stays(llm: LLM, arguments, message):
    with pytest.raises(InvalidRequestError, match=message):
        llm.generate(**arguments)
    assert not llm._client._open
    assert engine_is_idle(llm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"deployment_config": {}}, "deployment_config is a setting of the server"),
        ({"seqs": 1}, "seqs is not a setting; the library has batch_invariant, "),
        ({"max_num_seq": 1}, "max_num_seq is not a setting; did you mean max_num_seqs?"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is not a setting: an engine computes on one device"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(settings, message):
    with pytest.raises(ConfigError, match=message):
        LLM(**settings)


def test_type_checkers_know_the_settings_as_they_are():
    """Of an engine all, and of the server those that say what a request is."""
    types = get_type_hints(LLMSettings)
    of_requests = {
        "generation_config",
        "special_tokens_in_messages",
        "max_choices",
        "tool_call_parser",
        "reasoning_parser",
    }
    assert types.keys() == EngineConfig.model_fields.keys() - {"model"} | of_requests
    assert types == {name: LLMConfig.model_fields[name].annotation for name in types}
    assert not LLMSettings.__required_keys__


LEFT_OPEN = """
import sys, threading, time
from bireme import LLM, SamplingParams
llm = LLM(sys.argv[1], tokenizer="smollm2-135m-instruct", load_format="dummy", num_kv_blocks=1024)
params = SamplingParams(max_tokens=500, ignore_eos=True)
threading.Thread(target=llm.generate, args=([[1, 2]] * 64, params), daemon=True).start()
while not llm._client._engine_loop.num_steps:
    time.sleep(0.01)
"""


def test_a_program_that_closes_nothing_ends_in_order_while_an_engine_computes(tmp_path):
    """Else Paddle's kernels go while a step asks for them: now and then the process aborted."""
    command = [sys.executable, "-c", LEFT_OPEN, str(write_tiny_model(tmp_path))]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "the engine died" not in ran.stderr


def test_a_closed_library_says_so(tmp_path):
    llm = LLM(str(write_tiny_model(tmp_path)), tokenizer="smollm2-135m-instruct", load_format="dummy", num_kv_blocks=16)
    (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 3
    llm.close()
    llm.close()
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate([[1]])
    assert not llm._thread.is_alive()


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar(CHOICE, '["blue 😀", "grün"]'), "blue 😀|grün"),
        (Grammar(REGEX, "[0-9]{3}-[a-f]{2}"), "[0-9]{3}-[a-f]{2}"),
        (Grammar(JSON_SCHEMA, '{"enum":[12,"ab"]}'), '12|"ab"'),
    ],
)
def test_answers_follow_a_grammar(llm, grammar, pattern):
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=30, grammar=grammar)
    for output in llm.generate(["The sky is", "One", "Two"], params):
        assert output.outputs[0].finish_reason == "stop" and re.fullmatch(pattern, output.text)
    with pytest.raises(InvalidRequestError, match=r"structured_outputs\.regex: the regex is not valid"):
        llm.generate("x", SamplingParams(grammar=Grammar(REGEX, "(")))
    assert engine_is_idle(llm)


def test_chats_call_tools_behind_reasoning_that_is_bounded(tmp_path):
    """Of a model whose own template knows tools and begins in reasoning."""
    template = (
        "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<think>{# </think> #}{% endif %}"
    )
    tokenizer = tool_tokenizer()
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(template)
    (eos,) = tokenizer.eos_token_ids
    config = {**TINY_CONFIG, "vocab_size": 512, "max_position_embeddings": 1024, "eos_token_id": eos}
    (tmp_path / "config.json").write_text(json.dumps(config))
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in ("look", "note")]
    (end,) = tokenizer.encode("</think>", add_special_tokens=False)
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=250, thinking_token_budget=6)
    with LLM(str(tmp_path), load_format="dummy", num_kv_blocks=64) as llm:
        named = {"type": "function", "function": {"name": "note"}}
        (output,) = llm.chat(QUESTION, params, n=2, tools=tools, tool_choice=named)
        for one in output.outputs:
            (call,) = one.tool_calls
            assert call["function"]["name"] == "note" and one.finish_reason == "tool_calls"
            jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
            # A grammar may complete a character first, of four bytes at most.
            assert one.reasoning and 6 <= one.token_ids.index(end) <= 9
        assert llm.chat(QUESTION, params, tools=tools)[0].outputs[0].token_ids[6] == end
        with pytest.raises(InvalidRequestError, match="must be one of the tools"):
            llm.chat(QUESTION, params, tools=tools[:1], tool_choice=named)
        with pytest.raises(InvalidRequestError, match="thinking_token_budget: reasoning is of chats"):
            llm.generate("x", params)
