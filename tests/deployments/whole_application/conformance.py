"""What the API takes and what it refuses, as a table: tests send each row to a server, docs/conformance.md shows it.

``FIELDS`` are rows of one field each; other tables of fields are rows of the same four values.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cluster.client.resumable import RESUMABLE_HEADER

CHAT, COMPLETION, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
MESSAGES = [{"role": "user", "content": "Say hello."}]
# The least that an endpoint takes.
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 1},
    COMPLETION: {"prompt": "Hello", "max_tokens": 1},
    TOKENIZE: {"prompt": "Hello"},
    DETOKENIZE: {"tokens": [1]},
}


class Works(NamedTuple):
    """It is answered with 200.

    Attributes:
        shows: where in the answer it shows, with dots; for text a part of it. Empty: in the tokens alone, or nowhere.
        note: for readers.
    """

    shows: str = ""
    note: str = ""


class Refused(NamedTuple):
    """It is answered with an error.

    Attributes:
        code: of the error; None if it has none.
        says: part of its message.
    """

    status: int
    code: str | None
    says: str


class Field(NamedTuple):
    """One field with one value; everything else in the body is the least that the endpoint takes."""

    endpoint: str
    field: str
    value: Any
    verdict: Works | Refused


class Row(NamedTuple):
    """One request."""

    feature: str
    method: str
    path: str
    verdict: Works | Refused
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


def rows_of(fields: Iterable[Field]) -> list[Row]:
    """As requests."""
    return [
        Row(f"`{name}: {_shown(value)}`", "POST", endpoint, verdict, {**LEAST[endpoint], name: value})
        for endpoint, name, value, verdict in fields
    ]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


_GONE = Refused(404, None, "/docs shows what there is")
_NO_TYPE = Refused(400, "invalid_content_type", "must be application/json")
_NO_CODING = Refused(415, "unsupported_content_encoding", "must be gzip or none")
_NO_GZIP = Refused(400, "invalid_gzip", "not valid gzip")
_ODD_RESUMABLE = {RESUMABLE_HEADER: "'x'"}
_ODD_EVENT = {"Last-Event-ID": "'x'"}
_NO_KEY = Refused(401, "invalid_api_key", "a valid API key is required")
_NOT_SUPPORTED = Refused(400, "unsupported_parameter", "leave it out")

ENDPOINTS = [
    Row("Chat completions", "POST", CHAT, Works("choices.0.message.content"), LEAST[CHAT]),
    Row("... as a stream", "POST", CHAT, Works("data: [DONE]"), {**LEAST[CHAT], "stream": True}),
    Row("Completions", "POST", COMPLETION, Works("choices.0.text"), LEAST[COMPLETION]),
    Row("... as a stream", "POST", COMPLETION, Works("data: [DONE]"), {**LEAST[COMPLETION], "stream": True}),
    Row("... of several prompts", "POST", COMPLETION, Works("choices.1.text"), {**LEAST[COMPLETION], "prompt": ["a", "b"]}),
    Row("... of token ids", "POST", COMPLETION, Works("choices.0.text"), {**LEAST[COMPLETION], "prompt": [1, 2]}),
    Row("List of models", "GET", "/v1/models", Works("data.0.max_model_len")),
    Row("... with a slash", "GET", "/v1/models/", Works("data.0.id")),
    Row("Unknown model", "GET", "/v1/models/other", Refused(404, "model_not_found", "does not exist")),
    Row("Tokens of a prompt", "POST", TOKENIZE, Works("tokens.0"), LEAST[TOKENIZE]),
    Row("Tokens of a chat", "POST", TOKENIZE, Works("tokens.0"), {"messages": MESSAGES}),
    Row("Text of tokens", "POST", DETOKENIZE, Works("prompt"), LEAST[DETOKENIZE]),
    Row("The tokenizer", "GET", "/tokenizer_info", Works("tokenizer_class")),
    Row("Health", "GET", "/health", Works("status")),
    Row("... as SageMaker asks", "GET", "/ping", Works("status")),
    Row("... as SageMaker asks", "POST", "/ping", Works("status")),
    Row("Version", "GET", "/version", Works("version")),
    Row("Requests under way", "GET", "/load", Works("server_load")),
    Row("Metrics", "GET", "/metrics?only=vllm", Works("vllm:num_requests_waiting")),
    Row("OpenAPI", "GET", "/openapi.json", Works("paths")),
    Row("... as a page", "GET", "/docs", Works("<html")),
    Row("Head of an answer", "HEAD", "/v1/models", Works()),
    Row("Method that a path has not", "GET", CHAT, Refused(405, None, "is not allowed on")),
    Row("Embeddings", "POST", "/v1/embeddings", _GONE, {"input": "x"}),
    Row("Responses API", "POST", "/v1/responses", _GONE, {"input": "x"}),
    Row("Anthropic's messages", "POST", "/v1/messages", _GONE, {"messages": MESSAGES, "max_tokens": 1}),
    Row("Speech", "POST", "/v1/audio/transcriptions", _GONE, {}),
    Row("Batches", "GET", "/v1/batches", _GONE),
    Row("Body that is no JSON", "POST", CHAT, Refused(400, "invalid_json", "not valid JSON"), b"{"),
    Row("Body of another type", "POST", CHAT, _NO_TYPE, b"{}", {"Content-Type": "text/plain"}),
    Row("Body in another coding", "POST", CHAT, _NO_CODING, b"{}", {"Content-Encoding": "br"}),
    Row("Body in broken gzip", "POST", CHAT, _NO_GZIP, b"{}", {"Content-Encoding": "gzip"}),
    Row("Body that is no Unicode", "POST", CHAT, Refused(400, "invalid_json", "not valid JSON"), b'{"model": "\xff"}'),
    Row("Other metrics", "GET", "/metrics?only='x'", Refused(400, "invalid_value", "allowed are vllm, bireme, ray")),
    Row("Recording of so many steps", "GET", "/v1/timeline?steps='x'", Refused(400, "invalid_value", "needs a number")),
    Row("Recording of another engine", "GET", "/v1/timeline?engine='x'", Refused(400, "invalid_value", "there are ")),
    Row("Way of an unknown request", "GET", "/v1/traces/'x'", Refused(404, "trace_not_found", "no ingress knows request")),
    Row("Event ids or none", "POST", CHAT, Refused(400, "invalid_value", "must be 0 or 1"), LEAST[CHAT], _ODD_RESUMABLE),
    Row("Event id of nobody's", "POST", CHAT, Refused(400, "invalid_event_id", "is no event id"), LEAST[CHAT], _ODD_EVENT),
    Row("No key", "GET", "/v1/models", _NO_KEY, None, {"Authorization": ""}),
]  # fmt: skip

FIELDS = [
    Field(CHAT, "model", "other", Refused(404, "model_not_found", "does not exist")),
    Field(CHAT, "temperature", 0.5, Works()),
    Field(CHAT, "temperature", 9, Refused(400, "invalid_value", "temperature")),
    Field(CHAT, "top_p", 0.5, Works()),
    Field(CHAT, "top_k", 5, Works(note="vLLM's")),
    Field(CHAT, "min_p", 0.1, Works(note="vLLM's")),
    Field(CHAT, "repetition_penalty", 1.1, Works(note="vLLM's")),
    Field(CHAT, "presence_penalty", 0.5, Works()),
    Field(CHAT, "frequency_penalty", 0.5, Works()),
    Field(CHAT, "logit_bias", {"5": -100}, Works()),
    Field(CHAT, "seed", 7, Works("seed")),
    Field(CHAT, "n", 2, Works("choices.1.message.content")),
    Field(CHAT, "stop", ["\n"], Works()),
    Field(CHAT, "max_completion_tokens", 1, Works("usage.completion_tokens")),
    Field(CHAT, "max_tokens", 10**6, Refused(400, "context_length_exceeded", "tokens")),
    Field(CHAT, "logprobs", True, Works("choices.0.logprobs.content.0.logprob")),
    Field(CHAT, "return_token_ids", True, Works("choices.0.token_ids", "vLLM's")),
    Field(CHAT, "messages", [{"role": "developer", "content": "Be brief."}, *MESSAGES], Works(note="is the system's")),
    Field(CHAT, "messages", [], Refused(400, "invalid_value", "messages")),
    Field(CHAT, "tools", [{"type": "function", "function": {"name": "f"}}],
          Refused(400, "unsupported_parameter", "this model's chat template has no place for it")),
    Field(CHAT, "tool_choice", "required", Refused(400, "invalid_value", "only allowed with tools")),
    Field(CHAT, "tool_choice", "none", Works(note="asks for nothing")),
    Field(CHAT, "include_reasoning", False, Works(note="vLLM's")),
    Field(CHAT, "response_format", {"type": "json_object"}, Works()),
    Field(CHAT, "response_format", {"type": "xml"}, Refused(400, "invalid_value", "response_format.type")),
    Field(CHAT, "guided_json", {"not": {}}, Refused(400, "invalid_grammar", "not supported at #")),
    Field(COMPLETION, "guided_choice", ["a", "b"], Works(note="vLLM's older name")),
    Field(COMPLETION, "structured_outputs", {"regex": "[0-9]{3}"}, Works(note="vLLM's")),
    Field(CHAT, "user", "me", Works(note="changes nothing")),
    Field(CHAT, "response_format", {"type": "text", "json_schema": None}, Works(note="nulls are absent in every object")),
    Field(CHAT, "stop", ["a", 5], Refused(400, "invalid_value", "stop.1: must be a string")),
    Field(CHAT, "stream_options", {}, Works(note="asks for nothing")),
    Field(CHAT, "stream_options", {"include_usage": True}, Refused(400, "invalid_value", "only allowed with stream=true")),
    Field(CHAT, "thinking", {"type": "disabled", "budget_tokens": 0}, Works()),
    Field(CHAT, "thinking_token_budget", 100,
          Refused(400, "unsupported_parameter", "how this model reasons is not to be seen in its chat template")),
    Field(CHAT, "thinking_token_budget", -1, Works(note="asks for nothing")),
    Field(CHAT, "logits_processors", [], Works(note="asks for nothing")),
    Field(CHAT, "documents", [{"text": "x"}], Refused(400, "unsupported_parameter", "setting trust_request_documents")),
    Field(CHAT, "chat_template", "x", Refused(400, "unsupported_parameter", "setting trust_request_chat_template")),
    Field(CHAT, "logit_bias", {"'x'": 1}, Refused(400, "invalid_value", "keys must be token ids")),
    Field(CHAT, "wat'", 1, Refused(400, "unknown_parameter", "unknown field")),
    Field(CHAT, "wat", 1, Refused(400, "unknown_parameter", "unknown field")),
    Field(COMPLETION, "echo", True, Works("choices.0.text")),
    Field(COMPLETION, "logprobs", 2, Works("choices.0.logprobs.top_logprobs.0")),
    Field(COMPLETION, "prompt_logprobs", 1, Works("choices.0.prompt_logprobs", "vLLM's")),
    Field(COMPLETION, "stop_token_ids", [2], Works(note="vLLM's")),
    Field(COMPLETION, "min_tokens", 1, Works(note="vLLM's")),
    Field(COMPLETION, "ignore_eos", True, Works(note="vLLM's")),
    Field(COMPLETION, "prompt", "", Refused(400, "invalid_value", "at least one character")),
    Field(COMPLETION, "prompt", [10**6], Refused(400, "invalid_value", "are below")),
    Field(COMPLETION, "suffix", "x", _NOT_SUPPORTED),
    Field(COMPLETION, "best_of", 3, Refused(400, "unsupported_parameter", "best_of must equal n")),
    Field(TOKENIZE, "return_token_strs", True, Works("token_strs.0")),
    Field(TOKENIZE, "add_special_tokens", False, Works("tokens.0")),
    Field(TOKENIZE, "continue_final_message", True, Refused(400, "unknown_parameter", "it is one of")),
    Field(DETOKENIZE, "tokens", [-1], Refused(400, "invalid_value", "token ids must be integers")),
]  # fmt: skip

_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1}},
}
_ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "y"}}]}
_HISTORY = [
    *MESSAGES,
    {"role": "assistant", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "2"},
    *MESSAGES,
]
_HALF = [*MESSAGES, {"role": "assistant", "content": "Hel"}]
_PREFLIGHT = {
    "Origin": "https://chat.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


def _part(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


FIELDS += [
    Field(COMPLETION, "allowed_token_ids", [40, 41], Works(note="vLLM's")),
    Field(COMPLETION, "allowed_token_ids", [10**6], Refused(400, "invalid_value", "are below")),
    Field(COMPLETION, "bad_words", ["the"], Works(note="vLLM's")),
    Field(COMPLETION, "truncate_prompt_tokens", 1, Works("usage.prompt_tokens", "vLLM's")),
    Field(COMPLETION, "truncate_prompt_tokens", 0, Refused(400, "invalid_value", "must be at least 1, or -1")),
    Field(COMPLETION, "request_id", "mine", Works("id", "vLLM's; the answer's id ends with it")),
    Field(COMPLETION, "priority", -1, Works(note="vLLM's")),
    Field(COMPLETION, "cache_salt", "mine", Works(note="vLLM's")),
    Field(COMPLETION, "skip_special_tokens", False, Works(note="vLLM's")),
    Field(COMPLETION, "stop", "", Refused(400, "invalid_value", "stop: must have at least 1 character")),
    Field(COMPLETION, "add_special_tokens", False, Works(note="vLLM's")),
    Field(COMPLETION, "use_beam_search", True, _NOT_SUPPORTED),
    Field(COMPLETION, "prompt_embeds", "x", _NOT_SUPPORTED),
    Field(CHAT, "priority", 1, Works(note="vLLM's")),
    Field(CHAT, "echo", True, Works("choices.0.message.content", "vLLM's")),
    Field(CHAT, "add_generation_prompt", False, Works(note="vLLM's")),
    Field(CHAT, "chat_template_kwargs", {"mood": "good"}, Works(note="vLLM's")),
    Field(CHAT, "reasoning_effort", "none", Works()),
    Field(CHAT, "service_tier", "auto", Works(note="changes nothing")),
    Field(CHAT, "service_tier", "gold", Refused(400, "invalid_value", "service_tier: must be")),
    Field(CHAT, "metadata", {"a": "b"}, Works(note="changes nothing")),
    Field(CHAT, "store", False, Works(note="changes nothing")),
    Field(CHAT, "modalities", ["text", "audio"], _NOT_SUPPORTED),
    Field(CHAT, "web_search_options", {"a": 1}, _NOT_SUPPORTED),
    Field(CHAT, "response_format", {"type": "structural_tag"}, Refused(400, "invalid_value", "has format, or structures")),
    Field(CHAT, "response_format", {"type": "structural_tag", "format": {"type": "const_string", "value": "ok"}}, Works()),
    Field(CHAT, "response_format", {"typ": "text"}, Refused(400, "unknown_parameter", "did you mean type?")),
    Field(CHAT, "structured_outputs", {"json": {"type": "null"}}, Works(note="vLLM's")),
    Field(CHAT, "structured_outputs", {"structural_tag": "x"}, Refused(400, "invalid_grammar", "no JSON at line 1")),
    Field(COMPLETION, "structured_outputs", {"grammar": 'start: "a"'}, Works(note="vLLM's; Lark or EBNF")),
    Field(COMPLETION, "structured_outputs", {"json_object": True}, Works(note="vLLM's")),
    Field(COMPLETION, "guided_json", {"type": "boolean"}, Works(note="vLLM's older name")),
    Field(COMPLETION, "guided_decoding_backend", "xgrammar", Works(note="changes nothing: there is one library")),
    Field(COMPLETION, "guided_regex", "[", Refused(400, "invalid_grammar", "not valid")),
    Field(COMPLETION, "guided_grammar", 'start: "a"', Works(note="vLLM's older name")),
    Field(COMPLETION, "guided_json", {"type": "integer", "multipleOf": 1000003}, Refused(400, "invalid_grammar", "remainders")),
]  # fmt: skip

FEATURES = [
    Row("Alternatives of each token", "POST", CHAT, Works("choices.0.logprobs.content.0.top_logprobs.1"),
        {**LEAST[CHAT], "logprobs": True, "top_logprobs": 2}),
    Row("Tokens named by their ids", "POST", COMPLETION, Works("choices.0.logprobs.tokens.0"),
        {**LEAST[COMPLETION], "logprobs": 0, "return_tokens_as_token_ids": True}),
    Row("Answer that goes on with the last message", "POST", CHAT, Works("choices.0.message.content"),
        {**LEAST[CHAT], "messages": _HALF, "continue_final_message": True}),
    Row("History with tool calls and a tool's answer", "POST", CHAT, Works("choices.0.message.content"),
        {**LEAST[CHAT], "messages": _HISTORY}),
    Row("History with a call of another kind", "POST", CHAT, Refused(400, "unsupported_value", "calls of functions alone"),
        {**LEAST[CHAT], "messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "x"}}]}]}),
    Row("Message of the role function", "POST", CHAT, Refused(400, "unsupported_value", "older form of the role tool"),
        {**LEAST[CHAT], "messages": [{"role": "function", "name": "f", "content": "x"}]}),
    Row("Tool that is no function", "POST", CHAT, Refused(400, "unsupported_value", "functions are the only tools"),
        {**LEAST[CHAT], "tools": [{"type": "custom", "custom": {"name": "x"}}]}),
    Row("Choice among tools, one of which is not there", "POST", CHAT, Refused(400, "invalid_value", "must be one of the tools"),
        {**LEAST[CHAT], "tool_choice": {"type": "allowed_tools", "allowed_tools": _ALLOWED},
         "tools": [{"type": "function", "function": {"name": "x"}}]}),
    Row("Text in parts", "POST", CHAT, Works("choices.0.message.content"),
        {**LEAST[CHAT], "messages": _part(type="text", text="Hi", cache_control={"type": "ephemeral"})}),
    Row("Image", "POST", CHAT, Refused(400, "unsupported_value", "takes and writes text only"),
        {**LEAST[CHAT], "messages": _part(type="image_url", image_url={"url": "data:"})}),
    Row("Sound", "POST", CHAT, Refused(400, "unsupported_value", "takes and writes text only"),
        {**LEAST[CHAT], "messages": _part(type="input_audio", input_audio={"data": "", "format": "wav"})}),
    Row("Part that refuses", "POST", CHAT, Refused(400, "unsupported_value", "goes into a text part"),
        {**LEAST[CHAT], "messages": _part(type="refusal", refusal="No.")}),
    Row("Prompt longer than the context", "POST", COMPLETION,
        Refused(400, "context_length_exceeded", "maximum context length is"),
        {**LEAST[COMPLETION], "prompt": [1] * 9000}),
    Row("Body larger than any context", "POST", COMPLETION,
        Refused(413, "request_too_large", "This model's maximum context length is"), b" " * (3 << 20)),
    Row("Longer answer than the context beside any prompt", "POST", COMPLETION,
        Refused(400, "context_length_exceeded", "leaves none for your prompt"),
        {**LEAST[COMPLETION], "max_tokens": 9000, "truncate_prompt_tokens": -1}),
    Row("Body in gzip", "POST", COMPLETION, Works("choices.0.text"),
        gzip.compress(json.dumps(LEAST[COMPLETION]).encode(), mtime=0), {"Content-Encoding": "gzip"}),
    Row("Preflight of an allowed origin, without a key", "OPTIONS", CHAT, Works(), None, {**_PREFLIGHT, "Authorization": ""}),
    Row("Usage in a stream's last chunk", "POST", CHAT, Works('"usage"'),
        {**LEAST[CHAT], "stream": True, "stream_options": {"include_usage": True}}),
    Row("Metrics under vLLM's names", "GET", "/metrics?only=vllm", Works("vllm:time_to_first_token_seconds_bucket")),
    Row("Metrics of the project's own", "GET", "/metrics?only=bireme", Works("bireme_")),
]  # fmt: skip

SECTIONS = {"Endpoints": ENDPOINTS, "Fields": rows_of(FIELDS), "Features": FEATURES}


def page() -> str:
    """The table as docs/conformance.md."""
    lines = [
        "# What works, and what is refused with which error",
        "",
        "Written by `python docs/make_conformance_page.py` from `tests/deployments/whole_application/conformance.py`; a test",
        "sends each row to a server. Fields stand beside the least that their endpoint takes. Every error has OpenAI's shape,",
        "with the field at fault in `param`. What cannot be read as an HTTP request never gets so far",
        "([http.md](http.md#what-a-client-may-send-and-hold)).",
    ]
    for title, rows in SECTIONS.items():
        lines += ["", f"## {title}", "| feature | request | verdict |", "|---|---|---|"]
        lines += [
            f"| {_cell(row.feature)} | `{row.method} {row.path}` | {_cell(_verdict(row.verdict))} |" for row in rows
        ]
    return "\n".join([*lines, ""])


def _verdict(verdict: Works | Refused) -> str:
    if isinstance(verdict, Works):
        return "works" + (f" ({verdict.note})" if verdict.note else "")
    code = f" `{verdict.code}`" if verdict.code else ""
    return f'refused: {verdict.status}{code}, "... {verdict.says.strip()} ..."'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
