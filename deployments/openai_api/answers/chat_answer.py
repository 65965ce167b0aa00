"""The answer to a chat completion."""

from __future__ import annotations

from typing import Any

from cluster.outputs import FINISH_STOP
from deployments.answers.choice import Choice
from deployments.answers.sequence_output import SequenceOutput
from deployments.openai_api.answers.answer import ALL, OpenAiResponse, finite
from deployments.openai_api.answers.message_parts import MessageParts
from deployments.openai_api.requests.protocol import ChatCompletionRequest
from deployments.parsers.answer_parser import PLAIN, AnswerFormat


class ChatAnswer(OpenAiResponse):
    """Answer to a chat completion; ``echo`` is the text that each choice begins with, ``form`` what is looked for in it."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    request: ChatCompletionRequest

    def __init__(self, *args: Any, echo: str = "", form: AnswerFormat = PLAIN, **options: Any) -> None:
        super().__init__(*args, **options)
        self._echo = echo
        self._form = form
        self._parts = {} if form.is_plain else {choice.index: self._new_parts(choice) for choice in self.choices}
        for index, parts in self._parts.items():
            # A client that takes an answer up has what was found in this.
            if text := self.choices[index].output.text:
                parts.delta(text, ends=False)

    def _new_parts(self, choice: Choice) -> MessageParts:
        return MessageParts(self._form, self.id, choice.index, self.request.include_reasoning)

    def message(self, choice: Choice) -> dict[str, Any]:
        """The message of a choice that is over; without what is echoed."""
        if self._form.is_plain:
            return {"content": choice.output.text, "refusal": None}
        return self._new_parts(choice).message(choice.output.text)

    def num_echoed(self, choice: Choice) -> int:
        return len(self._echo)

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        output = choice.output
        message = {"role": "assistant", **self.message(choice)}
        if self._echo:
            message["content"] = self._echo + (message["content"] or "")
        body = {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(output, ALL),
            "finish_reason": finish_reason(output, len(message.get("tool_calls", ()))),
            "stop_reason": output.stop_reason,
        }
        if self.request.return_token_ids:
            body["token_ids"] = output.token_ids
        return body

    def whole_extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.request.return_token_ids:
            extras["prompt_token_ids"] = self.prompt_ids[0]
        return {**extras, **self.first_chunk_extras(self.choices[0])}

    def first_chunk_extras(self, choice: Choice) -> dict[str, Any]:
        # All choices have the same prompt.
        if self.request.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": self.prompt_logprobs(choice)}

    def opening_choice(self, choice: Choice) -> dict[str, Any]:
        # As OpenAI has it: clients take the role from a chunk of its own, whose content is empty, or what is echoed.
        delta = {"role": "assistant", "content": self._echo, "refusal": None}
        body: dict[str, Any] = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        if self.request.return_token_ids:
            body |= {"token_ids": [], "prompt_token_ids": self.prompt_ids[0]}
        return body

    @property
    def adds_to_text(self) -> bool:
        return bool(self.request.logprobs) or not self._form.is_plain

    def chunk_choice(self, choice: Choice, text: str, new: slice, first: bool) -> dict[str, Any] | None:
        output = choice.output
        with_tokens = self.request.return_token_ids or self.request.logprobs
        parts = self._parts.get(choice.index)
        delta: dict[str, Any] = {"content": text} if text else {}
        if parts is not None:
            delta = parts.delta(text, ends=output.finish_reason is not None)
        if not (delta or output.finish_reason or (with_tokens and new.stop > new.start)):
            return None
        body = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(output, new),
            "finish_reason": finish_reason(output, 0 if parts is None else parts.num_calls),
        }
        if output.finish_reason is not None:
            body["stop_reason"] = output.stop_reason
        if self.request.return_token_ids:
            body["token_ids"] = output.token_ids[new]
        return body

    def _logprobs(self, output: SequenceOutput, new: slice) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        content = []
        for token, entry in zip(output.token_ids[new], output.logprobs[new]):
            tops = [self._token(top, logprob) for top, logprob in zip(entry.top_ids, entry.top_logprobs)]
            content.append({**self._token(token, entry.logprob), "top_logprobs": tops})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.token_name(token),
            "logprob": finite(logprob),
            "bytes": list(self.tokenizer.token_bytes(token)),
        }


def finish_reason(output: SequenceOutput, num_calls: int) -> str | None:
    """Why a chat's answer ended: in calls, if its model ended it and there are some."""
    return "tool_calls" if output.finish_reason == FINISH_STOP and num_calls else output.finish_reason
