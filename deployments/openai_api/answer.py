"""Answers of the OpenAI-compatible API: whole objects and the chunks of a stream, built from the same parts.

What completions and chats have in common; ``completion_answer`` and ``chat_answer`` say what a choice looks like.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from actors.text.tokenizer import Tokenizer
from cluster.outputs import TokenLogprobs
from deployments.http.generation import Generation
from deployments.http.sequence_output import SequenceOutput
from deployments.openai_api.protocol import GenerationRequest
from deployments.openai_api.resume import ResumePoint

ALL = slice(0, None)
# Text takes as long to write as so many values in its place.
_CHARS_A_VALUE = 64
_LOWEST_LOGPROB = -9999.0  # JSON has no infinity; the value OpenAI documents for a token that is very unlikely


def model_object(model_id: str, created: int, max_model_len: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": "bireme", "max_model_len": max_model_len}


class OpenAiResponse(ABC):
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
        self._has_ended = [False] * len(self._num_sent)
        # The prompt's cached tokens are known where the answer began.
        self._num_cached_before = resumed.num_cached_tokens if resumed else 0
        self.event_ids: list[str] = []
        options = request.stream_options
        self._include_usage = options is not None and options.with_usage
        self._usage_in_every_chunk = options is not None and options.with_usage_in_every_chunk

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
            new = slice(max(num_sent, 0), self.num_generated(output))
            opening = self.opening_choice(i) if num_sent < 0 else None
            if opening is not None:
                self._num_sent[i] = 0
                chunks.append({**self._chunk(i, opening), "seed": self.seed})
            choice = self.chunk_choice(i, text, output, new, first=num_sent < 0)
            if choice is not None:
                self._num_sent[i] = max(num_sent, new.stop)
                chunks.append(self._chunk(i, choice))
                if num_sent < 0:
                    chunks[-1]["seed"] = self.seed
            if begins:
                chunks[0].update(self.first_chunk_extras(i, output))
        return chunks

    def _chunk(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        """A chunk with what was sent by now, and its id."""
        num_sent = [max(num, 0) for num in self._num_sent]
        self._has_ended[index] |= choice["finish_reason"] is not None
        # A choice that has nothing yet is begun anew by who takes the answer up, and its prompt looked up again.
        num_cached = self.num_cached_tokens([num > 0 or end for num, end in zip(num_sent, self._has_ended)])
        point = ResumePoint(self._head["id"], self._head["created"], sum(num_sent), num_cached)
        self.event_ids.append(str(point))
        chunk = {
            **self._head,
            "object": self.chunk_name,
            "choices": [choice],
            "system_fingerprint": self.generation.fingerprint,
        }
        if self._usage_in_every_chunk:
            # As vLLM has it: that of the chunk's choice.
            chunk["usage"] = _usage(len(self.prompt_ids[index // self.request.n]), num_sent[index])
        elif self._include_usage:
            chunk["usage"] = None
        return chunk

    def num_values(self, texts: dict[int, str] | None = None) -> int:
        """About how many values the answer has, or the chunks for ``texts``: a long one is built beside the event loop."""
        count = 0
        for i in range(len(self.generation.outputs)) if texts is None else texts:
            output, num_sent = self.generation.outputs[i], -1 if texts is None else self._num_sent[i]
            count += len(output.text if texts is None else texts[i]) // _CHARS_A_VALUE
            if num_sent < 0:
                count += self.num_echoed(i) // _CHARS_A_VALUE
            first, num_tokens = num_sent < 0, len(output.token_ids) - max(num_sent, 0)
            count += num_tokens * self._values_a_token(output.logprobs)
            if first and output.prompt_logprobs is not None:
                count += len(output.prompt_logprobs) * self._values_a_token(output.prompt_logprobs)
            if first and self.request.return_token_ids:
                count += len(self.prompt_ids[i // self.request.n])
        return count

    def num_echoed(self, index: int) -> int:
        """Characters of the prompt that a choice begins with."""
        return 0

    @staticmethod
    def _values_a_token(entries: Sequence[TokenLogprobs | None]) -> int:
        last = entries[-1] if entries else None
        return 1 if last is None else 4 * (1 + len(last.top_ids))

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
        num_prompt = sum(map(len, self.prompt_ids))
        num_generated = sum(self.num_generated(output) for output in self.generation.outputs)
        return {
            **_usage(num_prompt, num_generated),
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens()},
        }

    def num_cached_tokens(self, counted: Sequence[bool] | None = None) -> int:
        """Prompt tokens found in the prefix cache when the answer began; of each prompt the first choice counts, if it does in
        ``counted``."""
        outputs, every = self.generation.outputs, slice(None, None, self.request.n)
        chosen = itertools.compress(outputs[every], counted[every]) if counted is not None else outputs[every]
        return self._num_cached_before + sum(output.num_cached_tokens for output in chosen)

    def num_generated(self, output: SequenceOutput) -> int:
        return len(output.token_ids)

    def whole_extras(self) -> dict[str, Any]:
        return {}

    def first_chunk_extras(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        """What the first chunk of a stream has beside its choice, which is number ``index``."""
        return {}

    def opening_choice(self, index: int) -> dict[str, Any] | None:
        """What a stream has of choice ``index`` before its text, or None if that is nothing."""
        return None

    @abstractmethod
    def whole_choice(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        """A choice of the whole answer."""

    @abstractmethod
    def chunk_choice(
        self, index: int, text: str, output: SequenceOutput, new: slice, first: bool
    ) -> dict[str, Any] | None:
        """A choice with the new text and what came with the tokens in ``new``; None if that is nothing."""

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


def _usage(num_prompt: int, num_generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
