"""A whole answer put together from the chunks of a stream."""

from __future__ import annotations

from typing import Any

from cluster.client.api_types import Answer

CHAT_PATH = "/v1/chat/completions"


def streamed_request(request: dict[str, Any]) -> dict[str, Any]:
    """The request for a whole answer as one for the same answer in a stream that can be taken up."""
    options = {**(request["json"].get("stream_options") or {}), "include_usage": True}
    body = {**request["json"], "stream": True, "stream_options": options, "return_token_ids": True}
    return {**request, "json": body}


class AnswerParts:
    """Collects chunks; ``whole`` is what the server would have sent without ``stream``.

    Args:
        request: for the whole answer, as the caller meant it.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._is_chat = request["url"] == CHAT_PATH
        self._with_token_ids = bool(request["json"].get("return_token_ids"))
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, list[str]] = {}
        self._messages: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Answer) -> None:
        """Take in the next chunk."""
        head = {name: value for name, value in chunk.raw.items() if name != "choices" and value is not None}
        self._head.update(head)
        for raw in chunk.raw["choices"]:
            index = raw["index"]
            self._texts.setdefault(index, []).append(
                (raw["delta"].get("content") or "") if self._is_chat else raw["text"]
            )
            if self._is_chat:
                _add_delta(self._messages.setdefault(index, {}), raw["delta"])
            known = self._choices.setdefault(
                index, {"index": index, "logprobs": None, "finish_reason": None, "stop_reason": None}
            )
            for name, value in raw.items():
                if name in ("delta", "text", "index") or value is None:
                    continue
                if name == "token_ids":
                    known[name] = known.get(name, []) + value
                elif name == "logprobs":
                    known[name] = _joined(known[name] or {}, value)
                else:
                    known[name] = value

    def whole(self) -> Answer:
        """The answer, once the stream is over."""
        choices = []
        head = dict(self._head)
        for index, choice in sorted(self._choices.items()):
            text = "".join(self._texts[index])
            if not self._with_token_ids:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
            if self._is_chat:
                more = self._messages[index]
                content = text or (None if any(more.values()) else "")
                message = {"role": "assistant", "content": content, "refusal": None, **more}
                choices.append({**choice, "message": message})
                if "prompt_token_ids" in choice:
                    # All choices of a chat have one prompt.
                    head["prompt_token_ids"] = choices[-1].pop("prompt_token_ids")
            else:
                choices.append({**choice, "text": text})
        if self._is_chat:
            head["object"] = "chat.completion"
        return Answer.parse({**head, "choices": choices})


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """What a message has besides content: pieces of reasoning, and of the arguments of calls."""
    for name in ("reasoning_content", "reasoning"):
        if name in delta:
            message[name] = (message.get(name) or "") + (delta[name] or "")
    for piece in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        if piece["index"] == len(calls):
            calls.append({"id": piece["id"], "type": piece["type"], "function": dict(piece["function"])})
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"].get("arguments") or ""


def _joined(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities are lists by name, of equal lengths."""
    for name, value in new.items():
        if isinstance(value, list):
            known.setdefault(name, []).extend(value)
        else:
            known.setdefault(name, value)
    return known
