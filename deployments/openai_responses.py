"""Answers of the OpenAI-compatible API: whole objects and the chunks of a stream, built from the same parts."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from actors.detokenizer import IncrementalDetokenizer
from actors.tokenizer import Tokenizer
from cluster.outputs import TokenLogprobs
from deployments.generation import Generation
from deployments.openai_protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from deployments.resume_point import ResumePoint
from deployments.sequence_output import SequenceOutput
from deployments.text_offsets import TextOffsets, prompt_offsets

_LOWEST_LOGPROB = -9999.0  # JSON has no infinity; the value OpenAI documents for a token that is very unlikely


def model_object(model_id: str, created: int, max_model_len: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": "bireme", "max_model_len": max_model_len}


class Answer:
    """Builds the answer to one request; subclasses say what a choice looks like.

    ``prompt_ids`` holds one list a prompt; choice ``i`` belongs to prompt ``i // n``.
    """

    id_prefix = ""
    object_name = ""
    chunk_name = ""

    def __init__(
        self,
        request: GenerationRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        prompt_ids: Sequence[list[int]],
        seed: int,
        resumed: ResumePoint | None = None,
    ) -> None:
        self.request = request
        self.tokenizer = tokenizer
        self.generation = generation
        self.prompt_ids = prompt_ids
        self.seed = seed
        self._head: dict[str, Any] = {
            "id": resumed.answer_id if resumed else f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.object_name,
            "created": resumed.created if resumed else int(time.time()),
            "model": model_id,
        }
        self._num_sent = [len(output.token_ids) or -1 for output in generation.outputs]
        self.event_ids: list[str] = []
        self._include_usage = request.stream_options is not None and request.stream_options.include_usage

    def whole(self) -> dict[str, Any]:
        """The answer object; every sequence must be finished."""
        choices = [self.whole_choice(i, output) for i, output in enumerate(self.generation.outputs)]
        return {
            **self._head,
            "choices": choices,
            "usage": self.usage(),
            "system_fingerprint": self.generation.fingerprint,
            "seed": self.seed,
            **self.whole_extras(),
        }

    def chunks(self, texts: dict[int, str]) -> list[dict[str, Any]]:
        """Chunks for what ``Generation.read`` returned; the first of each choice carries the seed.

        ``event_ids`` has the id of each afterwards: which answer it belongs to, and how many tokens it had with it.
        """
        chunks = []
        self.event_ids = []
        for i, text in texts.items():
            output, num_sent = self.generation.outputs[i], self._num_sent[i]
            begins = all(num < 0 for num in self._num_sent)
            choice = self.chunk_choice(i, text, output, max(num_sent, 0), first=num_sent < 0)
            if choice is None:
                continue
            self._num_sent[i] = len(output.token_ids)
            chunk = {
                **self._head,
                "object": self.chunk_name,
                "choices": [choice],
                "system_fingerprint": self.generation.fingerprint,
            }
            if self._include_usage:
                chunk["usage"] = None
            if num_sent < 0:
                chunk["seed"] = self.seed
            if begins:
                chunk.update(self.first_chunk_extras(i, output))
            chunks.append(chunk)
            num_tokens = sum(max(num, 0) for num in self._num_sent)
            self.event_ids.append(str(ResumePoint(self._head["id"], self._head["created"], num_tokens)))
        return chunks

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last chunk if the client asked for usage."""
        if not self._include_usage:
            return None
        return {
            **self._head,
            "object": self.chunk_name,
            "choices": [],
            "usage": self.usage(),
            "system_fingerprint": self.generation.fingerprint,
        }

    def usage(self) -> dict[str, Any]:
        """Token counts; a prompt counts once however many choices it has."""
        outputs, n = self.generation.outputs, self.request.n
        num_prompt = sum(map(len, self.prompt_ids))
        num_generated = sum(self.num_generated(output) for output in outputs)
        cached = sum(output.num_cached_tokens for output in outputs[::n])
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def num_generated(self, output: SequenceOutput) -> int:
        return len(output.token_ids)

    def whole_extras(self) -> dict[str, Any]:
        return {}

    def first_chunk_extras(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        """What the first chunk of a stream has beside its choice, which is number ``index``."""
        return {}

    def whole_choice(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        raise NotImplementedError

    def chunk_choice(
        self, index: int, text: str, output: SequenceOutput, start: int, first: bool
    ) -> dict[str, Any] | None:
        """A choice with the new text and what came with tokens from number ``start`` on; None if that is nothing."""
        raise NotImplementedError

    def prompt_logprobs(self, index: int, output: SequenceOutput) -> list[dict[str, Any] | None] | None:
        """Log-probabilities of the prompt as vLLM reports them: token id to logprob, rank and text."""
        if self.request.prompt_logprobs is None or output.prompt_logprobs is None:
            return None
        prompt = self.prompt_ids[index // self.request.n]
        return [
            None if entry is None else self._by_token_id(token, entry)
            for token, entry in zip(prompt, output.prompt_logprobs)
        ]

    def _by_token_id(self, token: int, entry: TokenLogprobs) -> dict[str, Any]:
        shown = {top: (logprob, rank) for rank, (top, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs), 1)}
        shown.setdefault(token, (entry.logprob, entry.rank))
        return {
            str(top): {"logprob": finite(logprob), "rank": rank, "decoded_token": self.tokenizer.token_text(top)}
            for top, (logprob, rank) in shown.items()
        }


class ChatAnswer(Answer):
    """Answer to a chat completion."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    request: ChatCompletionRequest

    def whole_choice(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "logprobs": self._logprobs(output, 0),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self.request.return_token_ids:
            choice["token_ids"] = output.token_ids
        return choice

    def whole_extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.request.return_token_ids:
            extras["prompt_token_ids"] = self.prompt_ids[0]
        return {**extras, **self.first_chunk_extras(0, self.generation.outputs[0])}

    def first_chunk_extras(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        # All choices have the same prompt.
        if self.request.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": self.prompt_logprobs(index, output)}

    def chunk_choice(
        self, index: int, text: str, output: SequenceOutput, start: int, first: bool
    ) -> dict[str, Any] | None:
        with_tokens = self.request.return_token_ids or self.request.logprobs
        if not (text or first or output.finish_reason or (with_tokens and len(output.token_ids) > start)):
            return None
        delta: dict[str, Any] = {"role": "assistant", "content": text} if first else {"content": text} if text else {}
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(output, start),
            "finish_reason": output.finish_reason,
        }
        if output.finish_reason is not None:
            choice["stop_reason"] = output.stop_reason
        if self.request.return_token_ids:
            choice["token_ids"] = output.token_ids[start:]
            if first:
                choice["prompt_token_ids"] = self.prompt_ids[0]
        return choice

    def _logprobs(self, output: SequenceOutput, start: int) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        content = []
        for token, entry in zip(output.token_ids[start:], output.logprobs[start:]):
            tops = [self._token(top, logprob) for top, logprob in zip(entry.top_ids, entry.top_logprobs)]
            content.append({**self._token(token, entry.logprob), "top_logprobs": tops})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.tokenizer.token_text(token),
            "logprob": finite(logprob),
            "bytes": list(self.tokenizer.token_bytes(token)),
        }


class CompletionAnswer(Answer):
    """Answer to a completion; ``prompt_texts`` are what echo repeats."""

    id_prefix = "cmpl"
    object_name = chunk_name = "text_completion"
    request: CompletionRequest

    def __init__(self, *args: Any, prompt_texts: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompt_texts = prompt_texts
        # The engine always samples; asked for no tokens at all, the one it made is not shown.
        self._prompt_only = self.request.max_tokens == 0
        self._offsets = [self._new_offsets(i) for i in range(len(self.generation.outputs))]
        if self.request.logprobs is not None:
            for offsets, output in zip(self._offsets, self.generation.outputs):
                for token in output.token_ids:  # those that a client who resumes has
                    offsets.push(token)

    def _new_offsets(self, index: int) -> TextOffsets:
        detokenizer = IncrementalDetokenizer(self.tokenizer, self.request.skip_special_tokens, continues=True)
        return TextOffsets(detokenizer, len(self.prompt_texts[index // self.request.n]))

    def num_generated(self, output: SequenceOutput) -> int:
        return 0 if self._prompt_only else len(output.token_ids)

    def whole_choice(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        return self._choice(index, output.text, output, 0, first=True)

    def chunk_choice(
        self, index: int, text: str, output: SequenceOutput, start: int, first: bool
    ) -> dict[str, Any] | None:
        with_tokens = self.request.return_token_ids or self.request.logprobs is not None
        if not (text or first or output.finish_reason or (with_tokens and len(output.token_ids) > start)):
            return None
        return self._choice(index, text, output, start, first)

    def _choice(self, index: int, text: str, output: SequenceOutput, start: int, first: bool) -> dict[str, Any]:
        prompt = index // self.request.n
        if self._prompt_only:
            text = ""
        if first and self.request.echo:
            text = self.prompt_texts[prompt] + text
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, output, start, first),
            "finish_reason": "length" if self._prompt_only and output.finish_reason else output.finish_reason,
        }
        if output.finish_reason is not None:
            choice["stop_reason"] = None if self._prompt_only else output.stop_reason
        if self.request.return_token_ids:
            choice["token_ids"] = [] if self._prompt_only else output.token_ids[start:]
            if first:
                choice["prompt_token_ids"] = self.prompt_ids[prompt]
        if first and self.request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self.prompt_logprobs(index, output)
        return choice

    def _logprobs(self, index: int, output: SequenceOutput, start: int, first: bool) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        tokens: list[int] = [] if self._prompt_only else output.token_ids[start:]
        entries: list[TokenLogprobs | None] = [] if self._prompt_only else list(output.logprobs[start:])
        if first:
            self._offsets[index] = self._new_offsets(index)
        offsets = [self._offsets[index].push(token) for token in tokens]
        if first and self.request.echo and output.prompt_logprobs is not None:
            prompt = self.prompt_ids[index // self.request.n]
            tokens = [*prompt, *tokens]
            entries = [*output.prompt_logprobs, *entries]
            offsets = prompt_offsets(self.tokenizer, prompt, self.prompt_texts[index // self.request.n]) + offsets
        texts = [self.tokenizer.token_text(token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._tops(text, entry) for text, entry in zip(texts, entries)],
            "text_offset": offsets,
        }

    def _tops(self, text: str, entry: TokenLogprobs) -> dict[str, float]:
        limit = self.request.logprobs or 0
        tops: dict[str, float] = {}
        # Tokens that are parts of characters share one text; the likeliest comes first and keeps it.
        for token, logprob in zip(entry.top_ids[:limit], entry.top_logprobs):
            tops.setdefault(self.tokenizer.token_text(token), finite(logprob))
        tops.setdefault(text, finite(entry.logprob))
        return tops


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
