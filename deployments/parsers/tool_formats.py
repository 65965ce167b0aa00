"""How families of models write tool calls: the names under which vLLM knows them, and what is special about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deployments.parsers.scanning.call_writer import CallWriter
from deployments.parsers.scanning.scanner import Scanner, Steps
from deployments.parsers.tools import deepseek, glm45, granite, hermes, mistral, qwen3_coder
from deployments.parsers.tools.argument_list import Functions
from deployments.parsers.tools.bare_json import PYTHON_TAG, bare_json, llama3_json
from deployments.parsers.tools.pythonic import pythonic


@dataclass(frozen=True)
class SeparateArguments:
    """How arguments are written one by one, where a grammar makes the call.

    Attributes:
        argument: around one: before its name, between name and value, behind the value.
        between: what stands between two.
        are_texts_bare: texts have no quotes, and end where the next tag begins.
    """

    argument: tuple[str, str, str]
    between: str = ""
    are_texts_bare: bool = True


@dataclass(frozen=True)
class Wrapping:
    """What stands around the arguments of a call, where a grammar makes the call.

    Attributes:
        marker: which no other answer has; empty if only an answer's beginning tells.
        begin, between, end: around all calls, behind the first marker, and between two.
        call: around one: before its name, between name and arguments, behind them.
        is_each_marked: each call has a marker, and not only all together.
        arguments: how arguments are written that are not one JSON object.
        no_words: texts that words around calls must not have, since they begin calls, too.
    """

    marker: str
    begin: str
    between: str
    end: str
    call: tuple[str, str, str]
    is_each_marked: bool = False
    arguments: SeparateArguments | None = None
    no_words: tuple[str, ...] = ()

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, each a name and its arguments as they are written."""
        before, middle, after = self.call
        mark = self.marker if self.is_each_marked else ""
        texts = [f"{mark}{before}{name}{middle}{arguments}{after}" for name, arguments in calls]
        return ("" if mark else self.marker) + self.begin + self.between.join(texts) + self.end


_OBJECT = '{"name": "', '", "arguments": ', "}"


@dataclass(frozen=True)
class ToolFormat:
    """A family.

    Attributes:
        read: the parser.
        markers: texts that it looks for, where tokens of the model have them.
        wrapping: of calls that a grammar makes.
        id_chars: how long ids of calls are, where the family's template wants to know that.
    """

    read: Callable[[Scanner, CallWriter, Functions], Steps[None]]
    markers: tuple[str, ...]
    wrapping: Wrapping
    id_chars: int | None = None


def _plain(
    read: Callable[[Scanner, CallWriter], Steps[None]],
) -> Callable[[Scanner, CallWriter, Functions], Steps[None]]:
    return lambda scan, calls, functions: read(scan, calls)


_HERMES = ToolFormat(
    _plain(hermes.hermes),
    (hermes.BEGIN, hermes.END),
    Wrapping(hermes.BEGIN, "", "\n", "", ("\n" + _OBJECT[0], _OBJECT[1], "}\n" + hermes.END), is_each_marked=True),
)
_LLAMA3 = ToolFormat(
    _plain(llama3_json), (PYTHON_TAG,), Wrapping("", "", "; ", "", ('{"name": "', '", "parameters": ', "}"))
)
_PYTHONIC = ToolFormat(
    _plain(pythonic),
    ("<|python_start|>", "<|python_end|>", PYTHON_TAG),
    Wrapping(
        "", "[", ", ", "]", ("", "(", ")"), arguments=SeparateArguments(("", "=", ""), ", ", are_texts_bare=False)
    ),
)
_DEEPSEEK = (deepseek.CALLS_BEGIN, deepseek.CALLS_END, deepseek.CALL_BEGIN, deepseek.CALL_END, deepseek.SEPARATOR)
_DEEPSEEK_V31 = ToolFormat(
    _plain(deepseek.deepseek_v31),
    _DEEPSEEK,
    Wrapping(
        deepseek.CALLS_BEGIN, "", "", deepseek.CALLS_END, (deepseek.CALL_BEGIN, deepseek.SEPARATOR, deepseek.CALL_END)
    ),
)
_QWEN3_CODER = ToolFormat(
    qwen3_coder.qwen3_coder,
    (qwen3_coder.BEGIN, qwen3_coder.END, qwen3_coder.FUNCTION, qwen3_coder.FUNCTION_END, qwen3_coder.PARAMETER,
     qwen3_coder.PARAMETER_END),
    Wrapping(
        qwen3_coder.BEGIN, "", "\n", "",
        ("\n" + qwen3_coder.FUNCTION, ">\n", qwen3_coder.FUNCTION_END + "\n" + qwen3_coder.END),
        is_each_marked=True,
        arguments=SeparateArguments((qwen3_coder.PARAMETER, ">\n", "\n" + qwen3_coder.PARAMETER_END + "\n")),
        no_words=(qwen3_coder.FUNCTION,),
    ),
)  # fmt: skip
_GLM45 = ToolFormat(
    glm45.glm45,
    (glm45.BEGIN, glm45.END, glm45.KEY, glm45.KEY_END, glm45.VALUE, glm45.VALUE_END),
    Wrapping(
        glm45.BEGIN, "", "\n", "", ("", "\n", glm45.END),
        is_each_marked=True,
        arguments=SeparateArguments((glm45.KEY, f"{glm45.KEY_END}\n{glm45.VALUE}", glm45.VALUE_END + "\n")),
    ),
)  # fmt: skip
JSON = ToolFormat(_plain(bare_json), (), Wrapping("", "[", ", ", "]", _OBJECT))

TOOL_FORMATS: dict[str, ToolFormat] = {
    "hermes": _HERMES,
    "ernie45": _HERMES,
    "qwen3_coder": _QWEN3_CODER,
    "qwen3_xml": _QWEN3_CODER,
    "llama3_json": _LLAMA3,
    "llama4_json": _LLAMA3,
    "pythonic": _PYTHONIC,
    "llama4_pythonic": _PYTHONIC,
    "mistral": ToolFormat(
        _plain(mistral.mistral),
        (mistral.BEGIN, "[ARGS]", "[CALL_ID]"),
        Wrapping(mistral.BEGIN, "[", ", ", "]", _OBJECT),
        9,
    ),
    "deepseek_v3": ToolFormat(
        _plain(deepseek.deepseek_v3),
        _DEEPSEEK,
        Wrapping(
            deepseek.CALLS_BEGIN,
            "",
            "\n",
            deepseek.CALLS_END,
            (deepseek.CALL_BEGIN + "function" + deepseek.SEPARATOR, "\n```json\n", "\n```" + deepseek.CALL_END),
        ),
    ),
    "deepseek_v31": _DEEPSEEK_V31,
    "glm45": _GLM45,
    "granite": ToolFormat(
        _plain(granite.granite), granite.BEGINS, Wrapping(granite.BEGINS[0], "[", ", ", "]", _OBJECT)
    ),
    "json": JSON,
}
