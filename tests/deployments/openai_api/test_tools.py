"""Calls and reasoning on the way from tokens to the wire, with the engines played by a list of tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.api_errors import ApiError
from cluster.client.answer_parts import CHAT_PATH, AnswerParts
from cluster.client.api_types import Answer
from cluster.outputs import FINISH_LENGTH, FINISH_STOP, TokenDelta, TokenLogprobs
from deployments.metrics.ingress_metrics import IngressMetrics
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.deployments.openai_api.tool_tokenizer import END, tool_tokenizer

# As Qwen's, less what matters to no test.
TEMPLATE = (
    "{% if tools %}Tools, called as <tool_call>{...}</tool_call>:{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
TWO = (
    'Hm.<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
)
ASK = {"messages": [{"role": "user", "content": "How warm?"}], "tools": [TOOL]}
TOKENIZER = tool_tokenizer(TEMPLATE)


class Engines:
    """Every sequence gets the tokens of ``text`` behind those that it has, one by one, and ends."""

    subscriber = "test"

    def __init__(self, text: str, ends: bool = True) -> None:
        self.metrics, self.events = IngressMetrics(), RequestEvents()
        self.entries: list[Any] = []
        self._tokens = TOKENIZER.encode(text + END * ends, add_special_tokens=False)
        self._reason = FINISH_STOP if ends else FINISH_LENGTH

    def check_room(self, num_sequences: int, tenant: str = "") -> None:
        pass

    def submit(self, entry: Any, deliver: Any, fail: Any) -> Any:
        self.entries.append(entry)
        entry.fingerprint = "f"
        begin = len(entry.output_token_ids)
        for i in range(begin, len(self._tokens)):
            last = i == len(self._tokens) - 1
            logprobs = None if entry.params.logprobs is None else [TokenLogprobs(-1.0, 1, [], [])]
            matched = self._tokens[i] if last and self._reason == FINISH_STOP else None
            reason = self._reason if last else None
            deliver(TokenDelta(entry.request_id, entry.attempt, i, [self._tokens[i]], logprobs, reason, matched))
        return SimpleNamespace(entry=entry)

    def cancel(self, submission: Any) -> None:
        pass


def service(engines: Engines, tool_parser: str = "auto", reasoning_parser: str = "auto") -> OpenAiService:
    formats = AnswerFormats(TOKENIZER, tool_parser, reasoning_parser)
    return OpenAiService(engines, TOKENIZER, "m", ModelLimits(4096, TOKENIZER.vocab_size), 4, formats=formats)


async def whole(body: dict[str, Any], text: str, ends: bool = True, **options: str) -> dict[str, Any]:
    generation, answer = await service(Engines(text, ends), **options).chat(body)
    while not generation.finished:
        await generation.read()
    return json.loads(json.dumps(answer.whole()))


async def streamed(body: dict[str, Any], text: str, caller: Caller | None = None) -> list[tuple[str, dict[str, Any]]]:
    """(id, chunk) of each, token by token."""
    generation, answer = await service(Engines(text)).chat({**body, "stream": True}, caller or Caller())
    chunks = []
    unread, generation._unread = list(generation._unread), type(generation._unread)()
    while unread:
        generation._unread.append(unread.pop(0))
        made = answer.chunks(await generation.read())
        chunks += list(zip(answer.event_ids, made))
    return chunks


def put_together(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Messages, as OpenAI's client puts deltas together."""
    messages: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            message = messages.setdefault(
                choice["index"], {"content": "", "reasoning_content": "", "calls": [], "ends": None}
            )
            message["ends"] = choice["finish_reason"] or message["ends"]
            for name in ("content", "reasoning_content"):
                message[name] += choice["delta"].get(name) or ""
            for call in choice["delta"].get("tool_calls", ()):
                if call["index"] == len(message["calls"]):
                    assert call["type"] == "function" and call["function"]["name"]
                    message["calls"].append([call["id"], call["function"]["name"], ""])
                else:
                    assert "name" not in call["function"] and "id" not in call
                message["calls"][call["index"]][2] += call["function"]["arguments"]
    return messages


async def test_calls_of_a_whole_answer():
    choice = (await whole(ASK, TWO))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["refusal"]) == ("Hm.", None)
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Zürich"}'},
        {"name": "weather", "arguments": "{}"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2 and "index" not in message["tool_calls"][0]
    message = (await whole(ASK, TWO[3:]))["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 2


@pytest.mark.parametrize(
    ("body", "ends", "reason"),
    [({}, True, "stop"), ({**ASK, "tool_choice": "none"}, True, "stop"), (ASK, False, "length")],
)
async def test_an_answer_without_calls_or_one_that_was_cut_ends_as_ever(body, ends, reason):
    body = {"messages": ASK["messages"], **body}
    choice = (await whole(body, TWO[:-30] if not ends else TWO, ends))["choices"][0]
    assert choice["finish_reason"] == reason
    assert ("tool_calls" in choice["message"]) == (not ends)
    if ends:
        assert choice["message"]["content"] == TWO


async def test_a_stream_says_what_the_whole_answer_says():
    body = {**ASK, "n": 2, "logprobs": True}
    chunks = [chunk for _, chunk in await streamed(body, TWO)]
    answer = await whole(body, TWO)
    for index, message in put_together(chunks).items():
        wanted = answer["choices"][index]
        calls = [call["function"] for call in wanted["message"]["tool_calls"]]
        assert message["content"] == wanted["message"]["content"] and message["ends"] == "tool_calls"
        assert [call[1:] for call in message["calls"]] == [[call["name"], call["arguments"]] for call in calls]
        logprobs = [item for chunk in chunks for c in chunk["choices"] if c["index"] == index and c["logprobs"]
                    for item in c["logprobs"]["content"]]  # fmt: skip
        assert logprobs == wanted["logprobs"]["content"]
    pieces = [c["delta"]["tool_calls"] for chunk in chunks for c in chunk["choices"] if "tool_calls" in c["delta"]]
    assert len(pieces) > 20, "arguments come as they are made"


@pytest.mark.parametrize("several", [True, False])
async def test_an_answer_that_is_taken_up_anywhere_names_and_writes_its_calls_alike(several):
    body = {**ASK, "n": 2, "return_token_ids": True, "seed": 1, "parallel_tool_calls": several}
    text = "<think>hm</think>" + (TWO[:120] + "</tool_call>" if several else TWO)
    chunks = await streamed(body, text)
    undisturbed = put_together([chunk for _, chunk in chunks])
    assert undisturbed[1]["calls"] and undisturbed[0]["calls"][0][0] != undisturbed[1]["calls"][0][0]
    for cut in range(1, len(chunks) + 1, 7 if len(chunks) > 100 else 1):
        has: list[dict[str, Any]] = [{"token_ids": [], "finish_reason": None} for _ in range(2)]
        for _, chunk in chunks[:cut]:
            for choice in chunk["choices"]:
                has[choice["index"]]["token_ids"] += choice["token_ids"]
                has[choice["index"]]["finish_reason"] = choice["finish_reason"]
        resume = {"fingerprint": chunks[0][1]["system_fingerprint"], "choices": has}
        made = service(Engines(text))
        caller = Caller(resumed=made.resume_point(chunks[cut - 1][0]))
        rest = await streamed({**body, "resume": resume}, text, caller)
        assert put_together([chunk for _, chunk in chunks[:cut] + rest]) == undisturbed, cut


async def test_one_call_ends_an_answer_where_no_more_are_wanted():
    body = {**ASK, "n": 2, "logprobs": True, "return_token_ids": True, "parallel_tool_calls": False}
    both = (await whole({**ASK, "return_token_ids": True}, TWO))["choices"][0]
    answer = await whole(body, TWO)
    for choice in answer["choices"]:
        assert (choice["finish_reason"], choice["stop_reason"]) == ("tool_calls", None)
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == both["message"]["tool_calls"][0]["function"]
        assert choice["message"]["content"] == "Hm."
        ids = choice["token_ids"]
        assert ids == both["token_ids"][: len(ids)] and TOKENIZER.decode(ids) == TWO[: TWO.index("}}") + 2]
        assert len(choice["logprobs"]["content"]) == len(ids)
    assert answer["usage"]["completion_tokens"] == 2 * len(ids)
    for message in put_together([chunk for _, chunk in await streamed(body, TWO)]).values():
        assert (message["content"], message["ends"], len(message["calls"])) == ("Hm.", "tool_calls", 1)
    # A stop string that comes first counts; answers without a call go on to their end.
    choice = (await whole({**body, "stop": ["rich"]}, TWO))["choices"][0]
    assert (
        choice["stop_reason"] == "rich"
        and choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Zü'
    )
    choice = (await whole({**body, "stop": ["}}\n<"]}, TWO))["choices"][0]
    assert (
        choice["finish_reason"] == "tool_calls" and choice["message"]["tool_calls"][0]["function"] == call["function"]
    )
    choice = (await whole(body, "<tool_call> is no call."))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "<tool_call> is no call.")


async def test_stop_strings_end_an_answer_inside_a_call():
    choice = (await whole({**ASK, "stop": ["rich"]}, TWO))["choices"][0]
    assert choice["stop_reason"] == "rich"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Zü'


async def test_reasoning_has_fields_of_its_own():
    body = {"messages": ASK["messages"]}
    message = (await whole(body, "<think>\nhm\n</think>\n\nWarm."))["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("hm", "hm", "Warm.")
    message = (await whole({**body, "include_reasoning": False}, "<think>hm</think>Warm."))["choices"][0]["message"]
    assert "reasoning" not in message and message["content"] == "Warm."
    message = (await whole({**body, "enable_thinking": False}, "Warm.</think>"))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (None, "Warm.</think>")
    message = (await whole(body, "<think>hm</think>Warm.", reasoning_parser="none"))["choices"][0]["message"]
    assert "reasoning" not in message and message["content"] == "<think>hm</think>Warm."
    (parts,) = put_together([chunk for _, chunk in await streamed(body, "<think>hm</think>Warm.")]).values()
    assert (parts["reasoning_content"], parts["content"], parts["ends"]) == ("hm", "Warm.", "stop")


async def test_a_budget_of_reasoning_goes_to_the_engine_with_its_marks_or_is_refused():
    body = {"messages": ASK["messages"]}

    async def params(fields: dict[str, Any], **options: str) -> Any:
        engines = Engines("x")
        await service(engines, **options).chat({**body, **fields})
        return engines.entries[0].params

    for fields in (
        {"thinking_token_budget": 0},
        {"thinking_budget": 0},
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
    ):
        found = await params(fields)
        assert (found.thinking_token_budget, found.bounds_reasoning, found.is_masked) == (0, True, True)
        assert found.reasoning_marks.ends == ("</think>",) and not found.reasoning_marks.is_open
        assert TOKENIZER.decode(list(found.reasoning_marks.end_token_ids)) == "</think>"
    assert (await params({"thinking_token_budget": 9}, reasoning_parser="deepseek_r1")).reasoning_marks.is_open
    # Where there is no reasoning, nothing is counted.
    for fields in ({"enable_thinking": False}, {"response_format": {"type": "json_object"}}):
        assert not (await params({"thinking_token_budget": 9, **fields})).bounds_reasoning
    for name, fields in (
        ("thinking_token_budget", {"thinking_token_budget": 5}),
        ("thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": 5}}),
    ):
        with pytest.raises(ApiError, match=f"{name}: how this model reasons is not to be seen") as caught:
            await params(fields, reasoning_parser="none")
        assert (caught.value.status, caught.value.param) == (400, name)
        assert caught.value.code == "unsupported_parameter"


async def test_special_tokens_that_mark_calls_are_read_and_others_are_not_shown():
    text = '[TOOL_CALLS][{"name": "weather", "arguments": {}}]<|im_start|>'
    message = (await whole(ASK, text, tool_parser="mistral"))["choices"][0]["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": "{}"} and len(call["id"]) == 9


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools_are_as_if_there_were_no_others(mode):
    other = {"type": "function", "function": {"name": "other", "strict": True, "parameters": {"type": "object"}}}
    chosen = {"mode": mode, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    entries = []
    for fields in (
        {"tools": [other, *ASK["tools"]], "tool_choice": {"type": "allowed_tools", "allowed_tools": chosen}},
        {"tool_choice": mode},
    ):
        engines = Engines("x")
        await service(engines).chat({**ASK, **fields})
        entries.append(engines.entries[0])
    some, alone = entries
    assert some.prompt_token_ids == alone.prompt_token_ids
    of_some, of_alone = some.params.grammar, alone.params.grammar
    assert (of_some and of_some.text) == (of_alone and of_alone.text) and (of_alone is None) == (mode == "auto")


async def test_the_template_gets_tools_and_one_without_a_place_for_them_refuses():
    engines = Engines("x")
    await service(engines).chat({**ASK, "tool_choice": "required"})
    prompt = TOKENIZER.decode(engines.entries[0].prompt_token_ids)
    assert '{"type": "function", "function": {"name": "weather", "parameters":' in prompt
    assert engines.entries[0].params.grammar.param == "tools"
    plain = tool_tokenizer("{{ messages[0].content }}")
    without = OpenAiService(engines, plain, "m", ModelLimits(4096, plain.vocab_size), 4)
    with pytest.raises(ApiError, match="tools: this model's chat template has no place for it") as caught:
        await without.chat(ASK)
    assert (caught.value.status, caught.value.param) == (400, "tools")


async def test_the_python_client_makes_of_a_stream_what_the_whole_answer_is():
    body = {**ASK, "n": 2, "seed": 1}
    text = f"<think>hm</think>{TWO}"
    parts = AnswerParts({"url": CHAT_PATH, "json": body})
    for _, chunk in await streamed({**body, "return_token_ids": True}, text):
        parts.add(Answer.parse(chunk))
    answer = await whole(body, text)
    for made, wanted in zip(parts.whole().raw["choices"], answer["choices"]):
        for call in (*made["message"]["tool_calls"], *wanted["message"]["tool_calls"]):
            assert call.pop("id")
        assert made["message"] == wanted["message"] and made["finish_reason"] == wanted["finish_reason"]
    choice = Answer.parse(answer).choices[0]
    assert (choice.text, choice.reasoning) == ("Hm.", "hm")
    assert [(call.name, call.arguments) for call in choice.tool_calls][1] == ("weather", "{}")
