"""What the load asks for: a number fixes everything."""

from __future__ import annotations

import random
from typing import Any

NUM_REQUESTS = 16
# More than a request has choices: each of them has a seed of its own.
_SEEDS_EACH = 10
# Lengths of stop strings in characters; a random model's tokens have about four.
_STOP_LENGTHS = {0: 30, 5: 12, 10: 3, 15: 8}
_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "kind": {"enum": ["lake", "sea"]},
        "km": {"type": "number"},
    },
    "required": ["name", "kind", "km"],
    "additionalProperties": False,
}
_RECORDS = {"type": "array", "items": _RECORD, "minItems": 200}
# Structures that are longer than any answer, so that every cut lies within one, and one that ends early.
_GRAMMARS: dict[int, dict[str, Any]] = {
    2: {"response_format": {"type": "json_schema", "json_schema": {"name": "one", "schema": _RECORD, "strict": True}}},
    8: {"guided_grammar": 'start: (/[a-z]{2,9}/ " " NUMBER "; ")+\nNUMBER: /[0-9]{1,4}/', "frequency_penalty": 0.3},
    9: {"guided_regex": r"([A-Z][a-z]{1,9} [0-9]{1,4}, ){400}"},
    12: {"structured_outputs": {"json": _RECORDS}},
}

# What Hermes and Qwen write, and, where the prompt begins it, reasoning before; the default model's own template knows neither.
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ tools | tojson }}"
)
_CALLING = _TEMPLATE + "<|im_start|>assistant\n{# <tool_call> #}"
_THINKING = _CALLING + "<think>{# </think> #}"


# A random model calls nothing of its own accord. A bias that is above all logits has it take each of these tokens once, those of
# a higher one first, because the penalty of what was taken leaves next to nothing of it: [look(at=' and words, and ')].
CALL_BEGINS, CALL_ENDS = (75, 14757, 24, 261, 2069), (35279,)
CALL_WORDS = (
    30001, 30002, 30003, 30004, 30007, 30008, 30009, 30010, 30013, 30017, 30018, 30019, 30020, 30021, 30022, 30023,
    30024, 30027, 30028, 30029, 30031, 30035, 30036, 30037, 30038, 30039, 30040, 30041, 30042, 30043, 30045, 30046,
    30049, 30050, 30051, 30052, 30054, 30055, 30056, 30057, 30058, 30059, 30060, 30063, 30066, 30067, 30068, 30070,
    30071, 30072, 30073, 30074, 30075, 30076, 30079, 30080, 30081, 30082, 30084, 30085, 30086, 30087, 30089, 30090,
    30091, 30095, 30097, 30098, 30099, 30100, 30102, 30103, 30105, 30106, 30107, 30115, 30116, 30117, 30118, 30121,
    30122, 30123, 30124, 30126, 30127, 30131, 30132, 30133, 30134, 30135, 30136, 30139, 30141, 30143, 30144, 30145,
    30146, 30147, 30149, 30150, 30152, 30154, 30159, 30160, 30162, 30167, 30168, 30169, 30170, 30171, 30172, 30173,
)  # fmt: skip
_FREE_CALL = {
    **{str(token): 100.0 - 5 * i for i, token in enumerate(CALL_BEGINS)},
    **dict.fromkeys(map(str, CALL_WORDS), 60.0),
    **dict.fromkeys(map(str, CALL_ENDS), 40.0),
}
_FREE = _TEMPLATE.replace("tools | tojson", "tools | length") + "<|im_start|>assistant\n{# [func_name1( #}"


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


# Calls of one function, longer than any answer, several calls of either behind reasoning that is cut, a call of the model's own
# after which no other may come, and a call that may not be thought about.
_TOOLS: dict[int, dict[str, Any]] = {
    3: {
        "chat_template": _FREE,
        "tools": [_tool("look", at={"type": "string"}), _tool("note", record=_RECORD)],
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 100.0,
        "logit_bias": _FREE_CALL,
        "max_tokens": 400,
    },
    6: {
        "chat_template": _CALLING,
        "tools": [_tool("look"), _tool("note", records=_RECORDS)],
        "tool_choice": {"type": "function", "function": {"name": "note"}},
    },
    11: {
        "chat_template": _THINKING,
        "tools": [_tool("look", at={"type": "string", "maxLength": 40}), _tool("note", records=_RECORDS)],
        "tool_choice": {"type": "function", "function": {"name": "note"}},
        "thinking_token_budget": 0,
    },
    14: {
        "chat_template": _THINKING,
        "tools": [_tool("look", at={"type": "string", "maxLength": 40}), _tool("note", record=_RECORD)],
        "tool_choice": "required",
        "thinking_token_budget": 40,
    },
}


def is_chat(number: int) -> bool:
    """Whether it is a conversation, not a completion."""
    return number % 4 == 2 or number in _TOOLS


def calls_tools(number: int) -> bool:
    return number in _TOOLS


def reasons(number: int) -> bool:
    """Whether its answer begins in its reasoning."""
    return _TOOLS.get(number, {}).get("thinking_token_budget", 0) > 0


def ends_with_call(number: int) -> bool:
    """Whether its first call ends it."""
    return "parallel_tool_calls" in _TOOLS.get(number, {})


def num_choices(number: int) -> int:
    return 2 if number % 7 in (1, 6) else 1


def has_stops(number: int) -> bool:
    """Whether a stop string ends the first choice; the string is taken from the answer without one (``stop_string``)."""
    return number in _STOP_LENGTHS


def number_of(seed: int) -> int:
    """The request that has a choice with this seed."""
    return seed // _SEEDS_EACH


def request_body(number: int, max_tokens: int, stops: dict[int, str]) -> dict[str, Any]:
    """Completions and chats of one or two choices, greedy and sampled, with penalties, log-probabilities, stop strings,
    grammars, tools and a budget of reasoning."""
    chance = random.Random(number)
    words = f"Story number {number}: " + "word " * chance.randint(1, 60)
    count, fewest = num_choices(number), max_tokens // 3
    body: dict[str, Any] = {
        "max_tokens": chance.randint(fewest, max_tokens) if count == 1 else fewest,
        "n": count,
        "seed": number * _SEEDS_EACH,
        "temperature": chance.choice([0.0, 0.8, 1.0]) if count == 1 else 1.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if is_chat(number):
        messages = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": words}]
        body |= {"messages": messages}
    else:
        body |= {"prompt": words}
    if number % 3 == 0:
        body |= {"frequency_penalty": 0.5, "repetition_penalty": 1.1, "min_tokens": 5}
    if number % 4 == 0:
        body |= {"logprobs": 1}
    if number == 14:
        body |= {"logprobs": True}
    body |= _GRAMMARS.get(number, {}) | _TOOLS.get(number, {})
    if number in stops:
        body |= {"stop": ["xyzzy qqqq", stops[number]], "include_stop_str_in_output": number == 5}
    return body


def stop_string(number: int, text: str) -> str:
    """A piece of ``text`` that comes late in it for the first time; all but the shortest straddle several tokens."""
    length = min(_STOP_LENGTHS[number], len(text))
    pieces = [text[i : i + length] for i in range(len(text) * 3 // 4 - length, 0, -1)]
    return max(pieces, key=text.find)


def cut_at(text: str, stop: str, included: bool) -> str:
    """``text`` up to the first ``stop``."""
    end = text.find(stop)
    return text[: end + len(stop)] if included else text[:end]
