"""What is looked for in the answer to a chat, and the grammar that makes it so where a call must come of it."""

from __future__ import annotations

import functools

from actors.text.tokenizer import Tokenizer
from cluster.api_errors import bad_request
from cluster.grammar import Grammar
from cluster.reasoning import ReasoningMarks
from deployments.openai_api.requests.protocol import ChatCompletionRequest
from deployments.openai_api.requests.tools import AUTO, NONE
from deployments.openai_api.tool_grammar import binds, tool_grammar
from deployments.parsers.answer_parser import AnswerFormat
from deployments.parsers.from_template import reasoning_parser_of, tool_parser_of
from deployments.parsers.reasoning import FORMATS, ReasoningFormat
from deployments.parsers.tool_formats import JSON, TOOL_FORMATS, ToolFormat

OFF = "none"
# Enough of a prompt's end for a tag and white space behind it.
_LAST_TOKENS = 32


class AnswerFormats:
    """Chooses formats for requests.

    Args:
        tool_parser: name of a tool format, ``auto`` for what the chat template tells of, or ``none``.
        reasoning_parser: the same of a reasoning format.
    """

    def __init__(self, tokenizer: Tokenizer, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> None:
        self._tokenizer = tokenizer
        self._tool_parser = tool_parser
        self._reasoning_parser = reasoning_parser
        self._shown: dict[tuple[str, ...], frozenset[int]] = {}

    def of(self, request: ChatCompletionRequest, prompt_ids: list[int], grammar: Grammar | None) -> AnswerFormat:
        """The format of an answer to ``request``, which asks itself for ``grammar``.

        Raises:
            ApiError: it offers tools, and how the model calls them is not known.
        """
        reasoning = self._reasoning(request)
        begins = None
        if reasoning is not None:
            end = self._tokenizer.decode(prompt_ids[-_LAST_TOKENS:], skip_special_tokens=False)
            begins = reasoning.begins_in(end)
            if grammar is not None and not _offers_tools(request):
                # Such an answer is what its grammar says, from its first token on.
                begins = False
        functions = {
            tool.function.name: (tool.function.parameters or {}).get("properties") or {} for tool in request.tools
        }
        return AnswerFormat(reasoning, begins, self._tools(request), functions)

    def grammar(self, request: ChatCompletionRequest, form: AnswerFormat, own: Grammar | None) -> Grammar | None:
        """What an answer must be like: ``own``, which the request asks for, or calls.

        Raises:
            ApiError: both cannot be.
        """
        if form.tools is None:
            return own
        return tool_grammar(request, form, own, self._tokenizer.special_id)

    def marks(self, request: ChatCompletionRequest, form: AnswerFormat) -> ReasoningMarks | None:
        """Between what the request's budget counts tokens; None where it has none, or there is nothing to count.

        Raises:
            ApiError: how the model reasons is not known.
        """
        name, budget = request.asked_thinking_budget
        if budget is None:
            return None
        reasoning = form.reasoning
        if reasoning is None:
            raise bad_request(
                f"{name}: how this model reasons is not to be seen in its chat template, or not looked for; the setting "
                "reasoning_parser says it. Leave it out; max_tokens bounds the whole answer",
                name,
                "unsupported_parameter",
            )
        if form.begins_in_reasoning is False:
            return None
        end = tuple(self._tokenizer.encode(reasoning.ends[0], add_special_tokens=False))
        return ReasoningMarks(reasoning.begins, reasoning.ends, end, form.begins_in_reasoning is True)

    def shown_tokens(self, form: AnswerFormat) -> frozenset[int]:
        """Special tokens that the text of an answer has, because they are looked for."""
        markers = (*(form.reasoning.markers if form.reasoning else ()), *(form.tools.markers if form.tools else ()))
        if markers not in self._shown:
            ids = map(self._tokenizer.special_id, markers)
            self._shown[markers] = frozenset(token_id for token_id in ids if token_id is not None)
        return self._shown[markers]

    def _reasoning(self, request: ChatCompletionRequest) -> ReasoningFormat | None:
        name: str | None = self._reasoning_parser
        if name == AUTO:
            name = self._of_model[1] if request.chat_template is None else reasoning_parser_of(request.chat_template)
        return None if name in (OFF, None) else FORMATS[name]

    def _tools(self, request: ChatCompletionRequest) -> ToolFormat | None:
        if not _offers_tools(request):
            return None
        name: str | None = self._tool_parser
        if name == OFF:
            raise bad_request(
                "tools: this server looks for no tool calls (setting tool_call_parser); leave them out, or set tool_choice to "
                "none",
                "tools",
                "unsupported_parameter",
            )
        if name == AUTO:
            name = self._of_model[0] if request.chat_template is None else tool_parser_of(request.chat_template)
        form = None if name is None else TOOL_FORMATS[name]
        if request.tool_choice != AUTO:
            # A grammar makes the calls: in the family's form, if that can be bound.
            functions = [tool.function for tool in request.tools]
            return form if form is not None and binds(form, functions) else JSON
        if form is None:
            raise bad_request(
                "tool_choice: how this model writes calls is not to be seen in its chat template; the setting tool_call_parser "
                "says it. Until then, required or the name of a function work",
                "tool_choice",
                "unsupported_parameter",
            )
        return form

    @functools.cached_property
    def _of_model(self) -> tuple[str | None, str | None]:
        """Names of what the model's own template tells of."""
        source = self._tokenizer.chat_template_source or ""
        return tool_parser_of(source), reasoning_parser_of(source)


def _offers_tools(request: ChatCompletionRequest) -> bool:
    return bool(request.tools) and request.tool_choice != NONE
