"""Conversations with tool calls, through templates that are written as those of real models are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.text.chat_template import ChatTemplate
from actors.text.tool_arguments import ToolArguments
from deployments.openai_api.requests.protocol import ChatCompletionRequest, parse_request
from tests.deployments.parsers.found import found, tools

# Each as its models have it, less what is not about tools.
QWEN25 = """
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""
LLAMA31 = """
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>' + message['content'] | trim + '<eot>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<assistant>{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<eot>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<ipython>" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<eot>" }}
    {%- endif %}
{%- endfor %}"""
HERMES = """
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments|tojson + '}</tool_call>' }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {{- '<tool_response>' + (message.name | default('', true)) + ':' + message.content + '</tool_response>' }}
    {%- else %}{{- '<' + message.role + '>' + message.content }}{%- endif %}
{%- endfor %}"""
MISTRAL = """
{%- for message in messages %}
    {%- if message["role"] == "user" %}{{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
        {{- "]</s>" }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- endif %}
{%- endfor %}"""
# Joins the arguments to its own text, and knows calls by a content that is none.
DEEPSEEK = """
{%- for message in messages %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<call>' + tool['type'] + '<sep>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] }}
            {{- '\\n```' }}
        {%- endfor %}
    {%- elif message['role'] == 'tool' %}{{- '<output>' + message['content'] }}
    {%- else %}{{- '<' + message['role'] + '>' + message['content'] }}{%- endif %}
{%- endfor %}"""
CHATML = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"

WRITTEN = '{"city":  "Zürich"}'
EXPECTED = {
    QWEN25: '<|im_start|>user\nhow warm?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": '
    '{"city": "Zürich"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n',
    LLAMA31: '<user>how warm?<eot><assistant>{"name": "weather", "parameters": {"city": "Zürich"}}<eot><ipython>21<eot>',
    HERMES: '<user>how warm?<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>'
    "<tool_response>weather:21</tool_response>",
    MISTRAL: '[INST] how warm?[/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}]</s>'
    '[TOOL_RESULTS] {"content": 21, "call_id": "abcdefghi"}',
    DEEPSEEK: '<user>how warm?<call>function<sep>weather\n```json\n{"city":  "Zürich"}\n```<output>21',
    CHATML: "<user>how warm?\n<assistant>\n<tool>21\n",
}
NAMES = {
    QWEN25: "qwen2.5",
    LLAMA31: "llama3.1",
    HERMES: "hermes",
    MISTRAL: "mistral",
    DEEPSEEK: "deepseek",
    CHATML: "chatml",
}


def history(arguments: Any, **assistant: Any) -> list[dict[str, Any]]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "how warm?"},
        {"role": "assistant", "tool_calls": [call], **assistant},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "21"},
    ]
    request = parse_request(ChatCompletionRequest, {"messages": messages})
    return [message.as_template_message() for message in request.messages]


@pytest.mark.parametrize("assistant", [{}, {"content": None}])
@pytest.mark.parametrize("source", EXPECTED, ids=NAMES.get)
def test_a_history_renders_as_the_models_template_has_it(source, assistant):
    assert ChatTemplate(source, {}, "m").render(history(WRITTEN, **assistant)) == EXPECTED[source]


@pytest.mark.parametrize("source", [QWEN25, LLAMA31, HERMES, MISTRAL], ids=NAMES.get)
def test_arguments_may_be_an_object(source):
    assert ChatTemplate(source, {}, "m").render(history({"city": "Zürich"})) == EXPECTED[source]


@pytest.mark.parametrize("text", ["not json", "[1]", "5", "{", "[" * 100_000])
def test_arguments_that_are_no_object_stay_text(text):
    assert ToolArguments.read(text) == text
    assert ChatTemplate(DEEPSEEK, {}, "m").render(history(text)).count(text)


@pytest.mark.parametrize("text", ["", "{}", " "])
def test_no_arguments_are_an_empty_object(text):
    arguments = ToolArguments.read(text)
    assert (arguments, str(arguments)) == ({}, text if text == "{}" else "{}")


def test_special_tokens_in_arguments_are_marked_in_both_forms():
    messages = history('{"a": "<|im_end|>"}')
    for source, shown in (
        (
            "{% for c in messages[1].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}",
            '{"a": "<_|im_end|>"}',
        ),
        ("{% for c in messages[1].tool_calls %}{{ '' + c.function.arguments }}{% endfor %}", '{"a": "<_|im_end|>"}'),
    ):
        marked = ChatTemplate(source, {}, "m").render(messages, rewrite=lambda text: text.replace("<", "<_"), mark="_")
        assert marked == shown


def test_a_template_that_takes_one_call_says_so():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = parse_request(ChatCompletionRequest, {"messages": [{"role": "assistant", "tool_calls": [call, call]}]})
    with pytest.raises(Exception, match="refuses these messages: This model only supports single tool-calls at once!"):
        ChatTemplate(LLAMA31, {}, "m").render([message.as_template_message() for message in request.messages])


@pytest.mark.parametrize(
    ("source", "family", "begin", "end"),
    [
        (QWEN25, "hermes", "<|im_start|>assistant\n", "<|im_end|>"),
        (HERMES, "hermes", "how warm?", "<tool_response>"),
        (LLAMA31, "llama3_json", "<assistant>", "<eot>"),
        (MISTRAL, "mistral", "[/INST]", "</s>"),
    ],
    ids=["qwen2.5", "hermes", "llama3.1", "mistral"],
)
def test_what_a_template_writes_of_a_call_is_read_as_that_call(source, family, begin, end):
    rendered = ChatTemplate(source, {}, "m").render(history(WRITTEN))
    answer = rendered.partition(begin)[2].partition(end)[0]
    read = found(answer, tools(family))
    assert read.content == "" and [(name, done) for name, _, done in read.calls] == [("weather", True)]
    assert json.loads(read.calls[0][1]) == json.loads(WRITTEN)
