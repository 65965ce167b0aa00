# ruff: noqa: E501
"""Answers with calls, as families of models write them: published forms, and what models make of them."""

from __future__ import annotations

from tests.deployments.parsers.found import Found

WEATHER = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "at": {"type": "object"},
    "wet": {"type": "boolean"},
}
D_BEGIN, D_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
D_CALL, D_CALL_END, D_SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def call(arguments: str, name: str = "weather", done: bool = True) -> tuple[str, str, bool]:
    return name, arguments, done


# Family, what a model wrote, what is in it.
WRITTEN = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>', Found("", (call('{"city": "Zürich"}'),))),
    ("hermes", 'Let me look.\n\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}\n</tool_call>\n',
     Found("Let me look.", (call("{}"), call('{"a": [1, {"b": "}"}]}', "f")))),
    ("hermes", '<tool_call>{"arguments": {"city": "Bern"}, "name": "weather", "id": 7}</tool_call>', Found("", (call('{"city": "Bern"}'),))),
    ("hermes", '<tool_call>{"name": "weather"}</tool_call> Done.', Found(" Done.", (call("{}"),))),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}</tool_call>', Found("", (call('{"city": "Bern"}'),))),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> \\" \\\\"}}</tool_call>', Found("", (call('{"city": "</tool_call> \\" \\\\"}'),))),
    ("hermes", '<tool_call>{"name": "weather", "arguments": null}</tool_call>', Found("", (call("{}"),))),
    # One bracket too many, no end between two calls, and none behind the last.
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}}\n</tool_call>', Found("", (call("{}", "f"),))),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}', Found("", (call("{}", "f"), call("{}", "g")))),
    ("hermes", "Plain words < and <tool> and <tool_cal", Found("Plain words < and <tool> and <tool_cal")),
    ("hermes", "  \n", Found("  \n")),
    ("hermes", "<tool_call>no call</tool_call>", Found("<tool_call>no call</tool_call>")),
    ("hermes", '<tool_call>\n{"na', Found('<tool_call>\n{"na')),
    ("hermes", '<tool_call> {"name": "", "arguments": {}}', Found('<tool_call> {"name": "", "arguments": {}}')),
    ("hermes", '<tool_call>nothing <tool_call>{"name": "f", "arguments": {}}</tool_call>', Found("<tool_call>nothing", (call("{}", "f"),))),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', Found("", (call('{"a": "b', "f", False),))),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', Found("", (call("[1]", "f"),))),
    ("hermes", '<tool_call>{"name": "f", "arguments": oops}</tool_call>', Found("", (call("oops}", "f"),))),
    ("ernie45", '\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>\n', Found("", (call('{"city": "Bern"}'),))),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
     Found("", (call('{"city": "Zürich", "days": 3}'),))),
    ("qwen3_coder", 'I write.\n<tool_call>\n<function=weather>\n<parameter=city>\nline "one"\n\n<b>two</b>\n</parameter>\n</function>\n</tool_call>',
     Found("I write.", (call('{"city": "line \\"one\\"\\n\\n<b>two</b>"}'),))),
    ("qwen3_coder", '<function=weather>\n<parameter=at>{"x": [1, 2]}</parameter>\n</function>', Found("", (call('{"at": {"x": [1, 2]}}'),))),
    ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>", Found("", (call("{}", "f"),))),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=days>\nthree\n</parameter>\n</function>\n</tool_call>", Found("", (call('{"days": "three"}'),))),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nBe", Found("", (call('{"city": "Be', done=False),))),
    ("qwen3_coder", 'Sure.<tool_call>\n<function=weather>\n<parameter=at>\n{"w": 1, \n "h": [{"x": null}]}\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=wet>\nTrue\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n</tool_call>',
     Found("Sure.", (call('{"at": {"w": 1, \n "h": [{"x": null}]}, "days": 2, "wet": true}'), call('{"city": "Bern"}')))),
    ("qwen3_coder", "<tool_call> {}", Found("<tool_call> {}")),
    ("glm45", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
     Found("", (call('{"city": "Zürich", "days": 3}'),))),
    ("glm45", "Yes.\n<tool_call>weather</tool_call><tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>", Found("Yes.", (call("{}"), call('{"a": "1"}', "f")))),
    ("glm45", '\n<tool_call>weather\n    <arg_key>at</arg_key>\n    <arg_value>{"a": [1, {"b": "</arg_value>"}]}</arg_value>\n    <arg_key>wet</arg_key>\n    <arg_value>true</arg_value>\n    </tool_call>\n\nMeanwhile:\n\n<tool_call>now\n</tool_call>',
     Found("\n\nMeanwhile:", (call('{"at": {"a": [1, {"b": "</arg_value>"}]}, "wet": true}'), call("{}", "now")))),
    ("glm45", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>S</arg_value>\n<arg_key>broken\n</tool_call>", Found("", (call('{"city": "S"', done=False),))),
    ("glm45", "<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>True", Found("", (call('{"days": ', done=False),))),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Bern"}}', Found("", (call('{"city": "Bern"}'),))),
    ("llama3_json", '<|python_tag|>{"name": "weather", "parameters": {}}; {"name": "f", "parameters": {"a": 1}}', Found("", (call("{}"), call('{"a": 1}', "f")))),
    ("llama3_json", '{"type": "function", "function": {"name": "weather", "parameters": {"a": 1}}}', Found("", (call('{"a": 1}'),))),
    ("llama3_json", '{"city": "Bern"} is JSON.', Found('{"city": "Bern"} is JSON.')),
    ("llama3_json", "Just words; {}", Found("Just words; {}")),
    ("llama3_json", '{"name": "f", "parameters": {}} and words', Found("and words", (call("{}", "f"),))),
    ("json", '[{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "f", "parameters": {}}]', Found("", (call('{"city": "Bern"}'), call("{}", "f")))),
    ("json", "[1, 2]", Found("[1, 2]")),
    ("json", "[]", Found("")),
    ("pythonic", "[weather(city='Zürich', days=3), f()]", Found("", (call('{"city": "Zürich", "days": 3}'), call("{}", "f")))),
    ("pythonic", "[f(a=[1, {'b': None}], c=(\"x)\" 'y'), d=true, e=-1.5)]", Found("", (call('{"a": [1, {"b": null}], "c": "x)y", "d": true, "e": -1.5}', "f"),))),
    ("pythonic", "[weather(city='Martha\\'s'), f(at={'a': {'b': [True, None]}}, l=[])]",
     Found("", (call('{"city": "Martha\'s"}'), call('{"at": {"a": {"b": [true, null]}}, "l": []}', "f")))),
    ("llama4_pythonic", "<|python_start|>[weather(city='LA'), weather(), f(steps=[])]<|python_end|>",
     Found("", (call('{"city": "LA"}'), call("{}"), call('{"steps": []}', "f")))),
    ("pythonic", "[1, 2]", Found("[1, 2]")),
    ("pythonic", "[see(this)]", Found("[see(this)]")),
    ("pythonic", "[f(a=1), g(a=", Found("g(a=", (call('{"a": 1}', "f"),))),
    ("pythonic", "[f(a=open('x'))]", Found("[f(a=open('x'))]")),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>", Found("", (call('{"a": 1}', "f"),))),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "f", "arguments": {}}]', Found("", (call('{"city": "Bern"}'), call("{}", "f")))),
    ("mistral", 'Well.[TOOL_CALLS]weather[ARGS]{"city": "Bern"}[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}', Found("Well.", (call('{"city": "Bern"}'), call("{}", "f")))),
    ("mistral", '[TOOL_CALLS]weather{"city": "Bern"}', Found("", (call('{"city": "Bern"}'),))),
    ("mistral", "[TOOL_CALLS] none", Found("[TOOL_CALLS] none")),
    ("deepseek_v3", f'{D_BEGIN}{D_CALL}function{D_SEP}weather\n```json\n{{"city": "Bern"}}\n```{D_CALL_END}\n{D_CALL}function{D_SEP}f\n```json\n{{}}\n```{D_CALL_END}{D_END}',
     Found("", (call('{"city": "Bern"}'), call("{}", "f")))),
    ("deepseek_v31", f'Look: {D_BEGIN}{D_CALL}weather{D_SEP}{{"city": "Bern"}}{D_CALL_END}{D_CALL}f{D_SEP}{{}}{D_CALL_END}{D_END}',
     Found("Look:", (call('{"city": "Bern"}'), call("{}", "f")))),
    ("deepseek_v3", f'{D_BEGIN}{D_CALL}function{D_SEP}f\n```json\n{{"a": {{"b": ["```"]}}}}\n```\n{D_CALL_END}\n{D_END}', Found("", (call('{"a": {"b": ["```"]}}', "f"),))),
    ("deepseek_v3", f'{D_BEGIN}{D_CALL}function{D_SEP}f\n```json\n{{"a": 1', Found("", (call('{"a": 1', "f", False),))),
    ("deepseek_v31", f'Well{D_BEGIN}{D_CALL}f{D_SEP}{{"x":{{"y":[1]}}}}{D_CALL_END}{D_END} and so on', Found("Well and so on", (call('{"x":{"y":[1]}}', "f"),))),
    ("deepseek_v31", f'{D_BEGIN}{D_CALL}f{D_SEP}{{"x": "b', Found("", (call('{"x": "b', "f", False),))),
    ("deepseek_v31", f"{D_BEGIN}nothing", Found(f"{D_BEGIN}nothing")),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {"a": {"b": []}}}, {"name": "g", "arguments": {"x": "]"}}]', Found("", (call('{"a": {"b": []}}', "f"), call('{"x": "]"}', "g")))),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {"a": "b', Found("", (call('{"a": "b', "f", False),))),
    ("granite", '<|tool_call|> [none]', Found("<|tool_call|> [none]")),
    ("ernie45", '\n\n\n<tool_call>\n{"name": "t", "arguments": {"at": "北京"}}\n</tool_call>\n<tool_call>\n{"name": "u", "arguments": {"a": {"b": [1, {"c": null}]}}}\n</tool_call>\n',
     Found("", (call('{"at": "北京"}', "t"), call('{"a": {"b": [1, {"c": null}]}}', "u")))),
    ("ernie45", '<tool_call>\n{"name": "t", "arguments": {"at": "北', Found("", (call('{"at": "北', "t", False),))),
    ("ernie45", "<tool_call>\nno\n</tool_call>", Found("<tool_call>\nno\n</tool_call>")),
    ("granite", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]', Found("", (call('{"city": "Bern"}'),))),
]  # fmt: skip
