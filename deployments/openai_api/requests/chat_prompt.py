"""From the messages of a chat to the token ids of its prompt: which template, with what, and where it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.text.tokenizer import Tokenizer
from cluster.api_errors import bad_request, from_engine
from cluster.errors import BiremeError
from deployments.openai_api.requests.messages import ChatMessage, TemplatedChat


class ChatPrompts:
    """Renders and encodes chats.

    Args:
        special_tokens_as_text: special tokens that are written out in messages are plain text.
        trust_request_chat_template: requests may bring a template of their own.
        trust_request_documents: requests may bring documents for the template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_tokens_as_text: bool = True,
        trust_request_chat_template: bool = False,
        trust_request_documents: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._special_tokens_as_text = special_tokens_as_text
        self._trusts_templates = trust_request_chat_template
        self._trusts_documents = trust_request_documents

    def encode(self, request: TemplatedChat, now: float, check: Callable[[str], None]) -> list[int]:
        """Token ids of the prompt.

        Args:
            now: what a template takes for the present, in seconds since the epoch.
            check: called with what was rendered before it is encoded.
        Raises:
            ApiError: the template does not take these messages or options.
        """
        if request.chat_template is not None and not self._trusts_templates:
            raise bad_request(
                "chat_template: this server takes no templates from requests (setting trust_request_chat_template)",
                "chat_template",
                "unsupported_parameter",
            )
        if not self._trusts_documents and (request.documents or request.chat_template_kwargs.get("documents")):
            name = "documents" if request.documents else "chat_template_kwargs.documents"
            raise bad_request(
                f"{name}: this server takes no documents from requests (setting trust_request_documents)",
                name,
                "unsupported_parameter",
            )
        try:
            template = self._tokenizer.chat_template(request.chat_template)
            return self._tokenizer.encode_chat(
                [message.as_template_message() for message in request.messages],
                request.add_special_tokens,
                self._special_tokens_as_text,
                check=check,
                template=template,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                tools=_tools(request, template.variables),
                template_kwargs=_variables(request, template.variables),
                now=now,
            )
        except BiremeError as error:
            if error.param == "prompt":  # the tokenizer does not know where the text came from
                raise bad_request(f"messages: {error.message}", "messages", error.code) from None
            raise from_engine(error) from None


def echoed(messages: list[ChatMessage]) -> str:
    """What an answer with echo begins with: the last message, if it is the assistant's, too."""
    last = messages[-1]
    return "\n".join(part.text for part in last.content) if last.role == "assistant" else ""


def _tools(request: TemplatedChat, known: frozenset[str]) -> list[dict[str, Any]] | None:
    """As a template knows them; None where there are none, which it asks for."""
    if not request.tools:
        return None
    return _placed("tools", [tool.as_template_tool() for tool in request.tools], known)


def _variables(request: TemplatedChat, known: frozenset[str]) -> dict[str, Any]:
    """Variables of the template: those that the client names, and fields for which it may have one."""
    own: dict[str, Any] = {}
    if request.documents:
        own["documents"] = _placed("documents", request.documents, known)
    effort, thinking = request.reasoning_effort, request.enable_thinking
    if thinking is None and request.thinking is not None:
        thinking = request.thinking.type == "enabled"
    if effort is not None and "reasoning_effort" in known:
        own["reasoning_effort"] = effort
    elif effort is not None and thinking is None:
        thinking = effort != "none"
    if thinking is not None and "enable_thinking" in known:
        own["enable_thinking"] = thinking
    elif thinking:
        name = "thinking" if request.thinking else "enable_thinking" if request.enable_thinking else "reasoning_effort"
        _placed(name, thinking, known)
    return {**own, **request.chat_template_kwargs}


def _placed(name: str, value: Any, known: frozenset[str]) -> Any:
    if name not in known:
        raise bad_request(
            f"{name}: this model's chat template has no place for it; leave it out", name, "unsupported_parameter"
        )
    return value
