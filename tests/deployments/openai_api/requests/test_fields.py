"""The table of fields: it knows what clients send, agrees with the models that validate, and is what the checks do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_params

from cluster.api_errors import ApiError
from deployments.openai_api.requests.answer_forms import ResponseFormat, ResponseSchema, StructuredOutputs
from deployments.openai_api.requests.fields import (
    ALLOWED_TOOLS,
    CALLED_FUNCTION,
    CHAT,
    CHOSEN_FUNCTION,
    CHOSEN_TOOL,
    COMPLETION,
    CONTENT_PART,
    DETOKENIZE,
    FIELDS,
    MESSAGE,
    OFFERED_TOOLS,
    RESPONSE_FORMAT,
    RESPONSE_SCHEMA,
    RESUME,
    RESUMED_CHOICE,
    ROWS,
    STREAM_OPTIONS,
    STRUCTURED_OUTPUTS,
    THINKING,
    TOKENIZE,
    TOKENIZE_CHAT,
    TOOL,
    TOOL_CALL,
    TOOL_FUNCTION,
    Verdict,
)
from deployments.openai_api.requests.messages import CalledFunction, ChatMessage, TextPart, Thinking, ToolCall
from deployments.openai_api.requests.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    Resume,
    ResumedChoice,
    StreamOptions,
    parse_request,
)
from deployments.openai_api.requests.tools import (
    AllowedTools,
    ChosenFunction,
    ChosenTool,
    FunctionDefinition,
    OfferedTools,
    Tool,
)
from deployments.openai_api.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizePromptRequest

F, G = ({"type": "function", "function": {"name": name}} for name in "fg")
USER = {"role": "user", "content": "hi"}
BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    COMPLETION: (CompletionRequest, {"prompt": "x"}),
    CHAT: (ChatCompletionRequest, {"messages": [USER]}),
}
MODELS = {
    COMPLETION: CompletionRequest,
    CHAT: ChatCompletionRequest,
    MESSAGE: ChatMessage,
    CONTENT_PART: TextPart,
    RESPONSE_FORMAT: ResponseFormat,
    RESPONSE_SCHEMA: ResponseSchema,
    STRUCTURED_OUTPUTS: StructuredOutputs,
    STREAM_OPTIONS: StreamOptions,
    TOOL_CALL: ToolCall,
    CALLED_FUNCTION: CalledFunction,
    TOOL: Tool,
    TOOL_FUNCTION: FunctionDefinition,
    CHOSEN_TOOL: ChosenTool,
    ALLOWED_TOOLS: AllowedTools,
    OFFERED_TOOLS: OfferedTools,
    CHOSEN_FUNCTION: ChosenFunction,
    THINKING: Thinking,
    RESUME: Resume,
    RESUMED_CHOICE: ResumedChoice,
    TOKENIZE: TokenizePromptRequest,
    TOKENIZE_CHAT: TokenizeChatRequest,
    DETOKENIZE: DetokenizeRequest,
}
# vLLM's request models, of which this is a copy of the names; they are no dependency.
VLLM_BOTH = """
    model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature top_p
    user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    allowed_token_ids prompt_logprobs logprob_token_ids bad_words echo add_special_tokens response_format structured_outputs
    priority request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection thinking_token_budget
    stream_interval
"""
VLLM = {
    COMPLETION: f"{VLLM_BOTH} prompt suffix prompt_embeds",
    CHAT: f"""{VLLM_BOTH} messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort include_reasoning
        parallel_tool_calls add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
        media_io_kwargs mm_processor_kwargs return_prompt_text""",
}
OPENAI = {
    COMPLETION: completion_params.CompletionCreateParamsBase,
    CHAT: chat_params.CompletionCreateParamsBase,
    STREAM_OPTIONS: ChatCompletionStreamOptionsParam,
}


def refusal(place: str, fields: dict[str, Any]) -> dict[str, Any]:
    kind, body = BODIES[place]
    with pytest.raises(ApiError) as caught:
        parse_request(kind, {**body, **fields})
    assert caught.value.status == 400
    return caught.value.body()["error"]


@pytest.mark.parametrize("place", MODELS)
def test_the_models_have_the_fields_that_work(place):
    assert MODELS.keys() == ROWS.keys() and MODELS[place].place == place
    assert {field.alias or name for name, field in MODELS[place].model_fields.items()} == {
        name for name, row in ROWS[place].items() if row.verdict is Verdict.WORKS
    }


@pytest.mark.parametrize("place", OPENAI)
def test_every_field_of_openais_client_is_decided(place):
    assert set(OPENAI[place].__annotations__) - ROWS[place].keys() == set()


@pytest.mark.parametrize("place", VLLM)
def test_every_field_of_vllm_is_decided(place):
    assert set(VLLM[place].split()) - ROWS[place].keys() == set()


@pytest.mark.parametrize("place", BODIES)
def test_what_is_refused_says_what_the_server_cannot_do_and_takes_what_asks_for_nothing(place):
    kind, body = BODIES[place]
    for name, row in ROWS[place].items():
        if row.verdict is Verdict.REFUSED:
            error = refusal(place, {name: {"asks": "for something"}})
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
            assert row.reason in error["message"]
            for value in (None, *row.harmless):
                parse_request(kind, {**body, name: value})


@pytest.mark.parametrize("place", BODIES)
def test_a_no_op_changes_nothing_but_is_checked(place):
    kind, body = BODIES[place]
    plain = parse_request(kind, body)
    values = ["x", "auto", "24h", True, False, -1, 0, 1, 3.0, {"a": "b"}]
    for name, row in ROWS[place].items():
        if row.verdict is Verdict.NO_OP:
            taken = []
            for value in values:
                try:
                    assert parse_request(kind, {**body, name: value}) == plain
                    taken.append(value)
                except ApiError as error:
                    refused = (error.param, error.code)
                    assert refused == (name, "invalid_value")
            assert 0 < len(taken) < len(values), name


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (CHAT, {"logprobs": False, "top_logprobs": 0, "include_reasoning": True, "reasoning_effort": "none"}),
        (CHAT, {"thinking": {"type": "disabled"}, "cache_prompt": True, "prompt_cache_retention": "24h"}),
        (COMPLETION, {"spaces_between_special_tokens": True, "logprobs": False, "top_logprobs": 0, "cache_prompt": False}),
        (COMPLETION, {"max_tokens": 3.0, "n": 1.0, "stop_token_ids": [2.0], "seed": -4.0, "stream": False}),
        (CHAT, {"messages": [{**USER, "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "x", "reasoning_content": "hm"}, USER]}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "{}", "parsed": {"a": 1}}, USER]}),
        (CHAT, {"thinking": {"type": "disabled", "budget_tokens": 0}, "logits_processors": [], "modalities": []}),
        (COMPLETION, {"thinking": {"type": "disabled", "budget_tokens": 0}, "thinking_token_budget": -1}),
        (CHAT, {"thinking_token_budget": -1, "thinking_budget": -1}),
        (COMPLETION, {"stream_options": {}, "repetition_detection": {"max_pattern_size": 0}, "logprob_token_ids": []}),
        (CHAT, {"stream_options": {"include_usage": False, "continuous_usage_stats": None}, "stream": False}),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": False}),
        (CHAT, {"continue_final_message": False, "add_generation_prompt": True}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": True}}),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_accepted(place, fields):
    kind, body = BODIES[place]
    parse_request(kind, {**body, **fields})


def test_a_number_without_a_fraction_is_an_integer():
    request = parse_request(CompletionRequest, {"prompt": [1, 2.0], "max_tokens": 3.0, "stop_token_ids": [2.0]})
    assert (request.max_tokens, request.stop_token_ids, request.prompt.items) == (3, [2], [[1, 2]])
    assert type(request.max_tokens) is int and all(type(token) is int for token in request.prompt.items[0])
    assert "must be an integer, got 3.5" in refusal(COMPLETION, {"max_tokens": 3.5})["message"]


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        (COMPLETION, {"stream": "yes"}, 'stream: must be true or false, got "yes"'),
        (COMPLETION, {"temperature": True}, "temperature: must be a number, got true"),
        (COMPLETION, {"temperature": 2.5}, "temperature: must be at most 2, got 2.5"),
        (COMPLETION, {"n": 0}, "n: must be at least 1, got 0"),
        (COMPLETION, {"max_tokens": -1}, "max_tokens: must be at least 0, got -1"),
        (CHAT, {"max_tokens": -1}, "max_tokens: must be at least 1, got -1"),
        (CHAT, {"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
        (COMPLETION, {"stop": ["a", 5]}, "stop.1: must be a string, got 5"),
        (COMPLETION, {"stop": ["a", ""]}, 'stop.1: must have at least 1 character, got ""'),
        (COMPLETION, {"stop_token_ids": [1, "2"]}, 'stop_token_ids.1: must be an integer, got "2"'),
        (COMPLETION, {"logit_bias": {"7": "x"}}, 'logit_bias.7: must be a number, got "x"'),
        (COMPLETION, {"logit_bias": []}, "logit_bias: must be an object, got []"),
        (COMPLETION, {"service_tier": "gold"}, 'service_tier: must be "auto", "default", "flex", "scale", "priority" or "fast"'),
        (CHAT, {"messages": {}}, "messages: must be a list, got {}"),
        (CHAT, {"messages": [USER, 5]}, "messages.1: must be an object, got 5"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role is required"),
        (CHAT, {"messages": [{"role": "narrator", "content": "x"}]},
         'messages.0.role: must be "system", "developer", "user", "assistant" or "tool", got "narrator"'),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
         'messages.0.content.1.type: this model takes and writes text only, got "image_url"'),
        (CHAT, {"tools": [{"type": "function"}]}, "tools.0.function is required"),
        (CHAT, {"tools": [{"function": {"name": "a b"}}]}, "tools.0.function.name: must be 1 to 128 letters, digits and _.:/-"),
        (CHAT, {"tool_choice": "any"}, 'tool_choice: must be "none", "auto", "required" or an object that names functions'),
        (CHAT, {"tool_choice": {"type": "custom", "custom": {"name": "f"}}},
         'tool_choice.type: must be "function" or "allowed_tools", since functions are the only tools of the models here'),
        (CHAT, {"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools is required"),
        (CHAT, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [F]}}},
         'tool_choice.allowed_tools.mode: must be "auto" or "required", got "none"'),
        (CHAT, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [F]}}},
         "tool_choice: is only allowed with tools"),
        (CHAT, {"tools": [F], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [F, G]}}},
         'tool_choice.allowed_tools.tools.1.function.name: must be one of the tools, got "g"'),
        (CHAT, {"tool_choice": "required"}, "tool_choice: is only allowed with tools"),
        (CHAT, {"tools": [{"function": {"name": "f"}}], "tool_choice": {"function": {"name": "g"}}},
         'tool_choice.function.name: must be one of the tools, got "g"'),
        (COMPLETION, {"tools": [{"type": "function"}]}, "tools: tools are of chats"),
        (CHAT, {"ebnf": "x"}, "ebnf: the form of an answer is told by response_format"),
        (CHAT, {"guided_decoding_backend": 1}, "guided_decoding_backend: must be a string"),
        (CHAT, {"length_penalty": True}, "length_penalty: this server does not search beams"),
        (CHAT, {"use_beam_search": 0}, "use_beam_search: this server does not search beams"),
        (COMPLETION, {"thinking_token_budget": 100}, "thinking_token_budget: reasoning is of chats"),
        (CHAT, {"thinking_token_budget": -2}, "thinking_token_budget: must be at least 0, got -2"),
        (CHAT, {"thinking_budget": "9"}, 'thinking_budget: must be an integer, got "9"'),
        (CHAT, {"thinking": {"type": "disabled", "budget_tokens": 9}},
         'thinking.budget_tokens: is only allowed with the type "enabled"'),
        (CHAT, {"thinking_token_budget": 8, "thinking": {"type": "enabled", "budget_tokens": 9}},
         "thinking.budget_tokens: must be that of thinking_token_budget (8), got 9"),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": True},
         "continue_final_message: cannot be true together with add_generation_prompt"),
        (CHAT, {"tempereture": 1}, 'unknown field "tempereture"; did you mean temperature?'),
        (CHAT, {"prompt": "x"}, 'unknown field "prompt"; it is one of completion'),
        (CHAT, {"quite_another": 1}, 'unknown field "quite_another"'),
    ],
)  # fmt: skip
def test_errors_are_in_words_of_json_and_name_the_item(place, fields, message):
    assert refusal(place, fields)["message"].startswith(message)


LONE = "\ud800"
CALL = {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("place", "fields", "param"),
    [
        (CHAT, {"messages": [USER, {"role": "user", "content": LONE}]}, "messages.1.content"),
        (CHAT, {"messages": [{**USER, "name": LONE}]}, "messages.0.name"),
        (CHAT, {"messages": [{**USER, "role": "assistant", "reasoning": LONE}]}, "messages.0.reasoning"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [CALL, {"function": {"name": "f", "arguments": LONE}}]}]},
         "messages.0.tool_calls.1.function.arguments"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [LONE]}}}]}]},
         "messages.0.tool_calls.0.function.arguments"),
        (CHAT, {"documents": [{}, {"text": LONE}]}, "documents.1.text"),
        (CHAT, {"chat_template_kwargs": {"a": LONE}}, "chat_template_kwargs"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, None]}]}, "messages.0.content.1"),
        (COMPLETION, {"prompt": [1, -1]}, "prompt.1"),
        (COMPLETION, {"prompt": ["a", [1, "b"]]}, "prompt.1.1"),
        (COMPLETION, {"prompt": ["a", []]}, "prompt.1"),
        (COMPLETION, {"prompt": ["a", None]}, "prompt.1"),
        (COMPLETION, {"resume": {"fingerprint": "f", "choices": [{"token_ids": [1, True]}]}}, "resume.choices.0.token_ids.1"),
        (COMPLETION, {"resume": {"fingerprint": "f", "choices": [{"token_ids": []}, {"token_ids": 5}]}},
         "resume.choices.1.token_ids"),
        (COMPLETION, {"stop_token_ids": [1, -1]}, "stop_token_ids.1"),
        (COMPLETION, {"stop_token_seqs": [[1], [1, 2.5]]}, "stop_token_seqs.1.1"),
        (COMPLETION, {"allowed_token_ids": [1, None]}, "allowed_token_ids.1"),
        (COMPLETION, {"bad_words": ["a", LONE]}, "bad_words.1"),
        (COMPLETION, {"stop": ["a", LONE]}, "stop.1"),
    ],
)  # fmt: skip
def test_a_bad_item_is_named_with_its_index(place, fields, param):
    error = refusal(place, fields)
    assert error["param"] == param and error["message"].startswith(param)


def test_objects_inside_a_request_have_nulls_and_unknown_fields_as_the_request_has():
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": None, "strict": None}, "wat": None}
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "x", "cache_control": None}],
        "tool_calls": [call],
    }
    body = {
        "messages": [message], "documents": [{"title": None, "text": "x"}], "logit_bias": {"7": None}, "metadata": {"a": "b"},
        "thinking": {"type": "disabled", "budget_tokens": None}, "response_format": {"type": "text", "json_schema": None},
        "structured_outputs": {"json": None}, "reasoning": {"effort": "none", "summary": None}, "stream_options": {"wat": None},
    }  # fmt: skip
    request = parse_request(ChatCompletionRequest, body)
    assert (request.documents, request.logit_bias) == ([{"text": "x"}], {})
    called = {**call, "wat": 1, "function": {"name": "f", "wat": 1}}
    body = {
        "messages": [{**message, "tool_calls": [called]}], "thinking": {"type": "enabled", "wat": 1}, "stream": True, "seed": 1,
        "return_token_ids": True, "resume": {"fingerprint": "f", "wat": 1, "choices": [{"token_ids": [], "wat": 1}]},
    }  # fmt: skip
    parse_request(ChatCompletionRequest, body, unknown_fields="ignore")
    assert refusal(CHAT, body)["code"] == "unknown_parameter"


@pytest.mark.parametrize("place", BODIES)
def test_no_error_has_words_of_python_or_pydantic(place):
    for name in ROWS[place]:
        for value in (True, "x", 1.5, -(2**70), [], [[]], {"a": 1}, [None], {"a": None}, [{"a": 1}], "\ud800"):
            try:
                parse_request(BODIES[place][0], {**BODIES[place][1], name: value})
            except ApiError as error:
                text = error.message
                assert not re.search(r"\b(None|True|False|dict|Input|pydantic|Python|tuple|str)\b", text)
                text.encode()
                assert len(text) < 400


@pytest.mark.parametrize("name", ["wat", "\ud800", "a" * 5000])
def test_unknown_fields_are_refused_or_left_out(name):
    assert refusal(CHAT, {name: 1})["code"] == "unknown_parameter"
    message = {**USER, name: 1, "content": [{"type": "text", "text": "x", name: 1}]}
    body = {"messages": [message], name: 1, "stream": True, "stream_options": {name: 1}}
    assert parse_request(ChatCompletionRequest, body, unknown_fields="ignore").messages[0].content[0].text == "x"
    with pytest.raises(ApiError, match="without a predicted output"):
        parse_request(ChatCompletionRequest, {**body, "prediction": {}}, unknown_fields="ignore")
    tool = {"type": "function", name: 1, "function": {"name": "f", name: 1}}
    choice = {"type": "function", name: 1, "function": {"name": "f", name: 1}}
    parse_request(ChatCompletionRequest, {**body, "tools": [tool], "tool_choice": choice}, unknown_fields="ignore")
    assert refusal(CHAT, {"tools": [tool]})["code"] == "unknown_parameter"


def test_every_row_says_why():
    for row in FIELDS:
        assert row.reason and not row.reason.endswith("."), row.name
        assert (row.takes is not None) == (row.verdict is Verdict.NO_OP), row.name
