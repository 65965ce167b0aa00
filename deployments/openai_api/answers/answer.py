"""Answers of the OpenAI-compatible API: whole objects and the chunks of a stream, built from the same parts.

What completions and chats have in common; ``completion_answer`` and ``chat_answer`` say what a choice looks like.
"""

from __future__ import annotations

import functools
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from actors.text.tokenizer import Tokenizer
from cluster.outputs import TokenLogprobs
from deployments.answers.choice import Choice
from deployments.answers.chunk_template import ChunkTemplate
from deployments.answers.generation import Generation
from deployments.http.json_pieces import write_json
from deployments.openai_api.answers.answer_digest import AnswerDigest
from deployments.openai_api.answers.event_ids import EventIds, ResumePoint
from deployments.openai_api.requests.protocol import GenerationRequest
from deployments.openai_api.requests.sampling_defaults import SamplingDefaults

ALL = slice(0, None)
# Text takes as long to write as so many values in its place.
_CHARS_A_VALUE = 64
_NO_TEMPLATE: tuple[Any, Any] = (None, None)
_LOWEST_LOGPROB = -9999.0  # JSON has no infinity; the value OpenAI documents for a token that is very unlikely


def model_object(model_id: str, created: int, max_model_len: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": "bireme",
        "max_model_len": max_model_len,
        "default_sampling_params": sampling,
    }


class OpenAiResponse(ABC):
    """Builds the answer to one request; subclasses say what a choice looks like.

    Args:
        prompt_ids: one list a prompt; choice ``i`` belongs to prompt ``i // n``.
        created: when the answer began, in seconds since the epoch.
        events: the ids of its events, and a digest of what their client has already; None if events get no ids.
        resumed: the event that the answer goes on after.
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
        created: int,
        events: tuple[EventIds, AnswerDigest] | None = None,
        resumed: ResumePoint | None = None,
        defaults: SamplingDefaults | None = None,
    ) -> None:
        self.request = request
        self._defaults = defaults or SamplingDefaults()
        self.tokenizer = tokenizer
        self.generation = generation
        self.prompt_ids = prompt_ids
        self.seed = seed
        # Who knows the id of a stream that can be taken up must not be able to choose it.
        own_id = request.request_id if events is None else None
        self._head: dict[str, Any] = {
            "id": resumed.answer_id if resumed else f"{self.id_prefix}-{own_id or uuid.uuid4().hex}",
            "object": self.object_name,
            "created": created,
            "model": model_id,
        }
        self.choices = generation.choices
        for choice in self.choices:
            choice.num_sent = len(choice.output.token_ids) or -1
        # The prompt's cached tokens are known where the answer began.
        self._num_cached_before = resumed.num_cached_tokens if resumed else 0
        self.event_ids: list[str] = []
        self._events = events
        # By choice, and for which fingerprint.
        self._templates: dict[int, tuple[str, ChunkTemplate]] = {}
        options = request.stream_options
        self._include_usage = options is not None and options.with_usage
        self._usage_in_every_chunk = options is not None and options.with_usage_in_every_chunk

    def whole(self) -> dict[str, Any]:
        """The answer object; every sequence must be finished."""
        return {
            **self._head,
            "choices": list(map(self.whole_choice, self.choices)),
            "usage": self.usage(),
            "system_fingerprint": self._defaults.mark(self.generation.fingerprint),
            "seed": self.seed,
            **self.whole_extras(),
        }

    def chunks(self, texts: dict[int, str]) -> list[dict[str, Any]]:
        """Chunks for what ``Generation.read`` returned; the first of each choice carries the seed.

        ``event_ids`` has the id of each afterwards, if events have some: which answer it belongs to, and what that was with it.
        """
        chunks = []
        self.event_ids = []
        for i, text in texts.items():
            choice = self.choices[i]
            num_sent = choice.num_sent
            begins = all(other.num_sent < 0 for other in self.choices)
            new = slice(max(num_sent, 0), self.num_generated(choice))
            opening = self.opening_choice(choice) if num_sent < 0 else None
            if opening is not None:
                choice.num_sent = 0
                chunks.append({**self._chunk(choice, opening), "seed": self.seed})
            body = self.chunk_choice(choice, text, new, first=num_sent < 0)
            if body is not None:
                choice.num_sent = max(num_sent, new.stop)
                chunks.append(self._chunk(choice, body, choice.output.token_ids[new]))
                if num_sent < 0:
                    chunks[-1]["seed"] = self.seed
            if begins:
                chunks[0].update(self.first_chunk_extras(choice))
        return chunks

    def is_plain(self, index: int) -> bool:
        """Whether the next chunk of a choice begins and ends nothing and brings text and perhaps token ids, as most do."""
        choice = self.choices[index]
        return choice.num_sent >= 0 and choice.output.finish_reason is None and self._has_plain_chunks

    def plain_chunk(self, index: int, text: str) -> str:
        """JSON of what ``chunks`` has for this text, with ``event_ids``, where ``is_plain``; empty if that is nothing."""
        if not text:
            return "".join([piece for chunk in self.chunks({index: text}) for piece in write_json(chunk)])
        choice = self.choices[index]
        template = self.plain_template(index)
        num_sent, choice.num_sent = choice.num_sent, len(choice.output.token_ids)
        token_ids = choice.output.token_ids[num_sent:]
        if self._events is not None:
            self.event_ids = [self._event_id(*self._events, index, token_ids, None)]
        return template.write(text, token_ids)

    def plain_template(self, index: int) -> ChunkTemplate:
        """What ``plain_chunk`` writes texts into that are not empty; another one once the fingerprint changes."""
        fingerprint = self.generation.fingerprint
        known, template = self._templates.get(index, _NO_TEMPLATE)
        if known != fingerprint:
            template = ChunkTemplate(functools.partial(self._template_chunk, self.choices[index]))
            self._templates[index] = fingerprint, template
        return template

    @property
    def whole_text(self) -> Callable[[int], str | None]:
        """The tokenizer's."""
        return self.tokenizer.whole_text

    def _template_chunk(self, choice: Choice, text: str, token_ids: list[int]) -> dict[str, Any]:
        body = self.chunk_choice(choice, text, slice(0, 0), first=False)
        assert body is not None
        if "token_ids" in body:
            body["token_ids"] = token_ids
        return self._chunk_of(choice, body)

    @functools.cached_property
    def _has_plain_chunks(self) -> bool:
        return not self._usage_in_every_chunk and not self.adds_to_text

    @property
    @abstractmethod
    def adds_to_text(self) -> bool:
        """Chunks in the middle of a choice have more that changes than text and token ids, or less."""

    def _chunk(self, choice: Choice, body: dict[str, Any], token_ids: Sequence[int] = ()) -> dict[str, Any]:
        """A chunk with ``body``, of ``choice``, which brings ``token_ids``; and its id."""
        choice.has_ended |= body["finish_reason"] is not None
        if self._events is not None:
            self.event_ids.append(self._event_id(*self._events, choice.index, token_ids, body["finish_reason"]))
        return self._chunk_of(choice, body)

    def _chunk_of(self, choice: Choice, body: dict[str, Any]) -> dict[str, Any]:
        chunk = {
            **self._head,
            "object": self.chunk_name,
            "choices": [body],
            "system_fingerprint": self._defaults.mark(self.generation.fingerprint),
        }
        if self._usage_in_every_chunk:
            # As vLLM has it: that of the chunk's choice.
            chunk["usage"] = _usage(len(self.prompt_of(choice)), max(choice.num_sent, 0))
        elif self._include_usage:
            chunk["usage"] = None
        return chunk

    def _event_id(
        self, ids: EventIds, digest: AnswerDigest, index: int, token_ids: Sequence[int], finish_reason: str | None
    ) -> str:
        """Tells what was sent by now, with these tokens and perhaps the end of a choice."""
        digest.add(index, token_ids, finish_reason)
        created = self._head["created"]
        point = ResumePoint(
            self.id,
            created,
            sum(max(choice.num_sent, 0) for choice in self.choices),
            # A choice that has nothing yet is begun anew by who takes the answer up, and its prompt looked up again.
            self.num_cached_tokens(only_begun=True),
            max(0, int(time.time()) - created),
            digest.text(self._defaults.mark(self.generation.fingerprint)),
        )
        return ids.sign(point)

    @property
    def can_be_taken_up(self) -> bool:
        """Its events have ids."""
        return self._events is not None

    @property
    def id(self) -> str:
        """What the answer is called, also after it was taken up."""
        return self._head["id"]

    def num_values(self, texts: dict[int, str] | None = None) -> int:
        """About how many values the answer has, or the chunks for ``texts``: a long one is built beside the event loop."""
        count = 0
        for choice in self.choices if texts is None else [self.choices[i] for i in texts]:
            output, num_sent = choice.output, -1 if texts is None else choice.num_sent
            count += len(output.text if texts is None else texts[choice.index]) // _CHARS_A_VALUE
            if num_sent < 0:
                count += self.num_echoed(choice) // _CHARS_A_VALUE
            first, num_tokens = num_sent < 0, len(output.token_ids) - max(num_sent, 0)
            count += num_tokens * self._values_a_token(output.logprobs)
            if first and output.prompt_logprobs is not None:
                count += len(output.prompt_logprobs) * self._values_a_token(output.prompt_logprobs)
            if first and self.request.return_token_ids:
                count += len(self.prompt_of(choice))
        return count

    def token_name(self, token_id: int) -> str:
        """How log-probabilities name a token."""
        return (
            f"token_id:{token_id}" if self.request.return_tokens_as_token_ids else self.tokenizer.token_text(token_id)
        )

    def prompt_of(self, choice: Choice) -> list[int]:
        """Token ids of the prompt that a choice answers."""
        return self.prompt_ids[choice.index // self.request.n]

    def num_echoed(self, choice: Choice) -> int:
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
            "system_fingerprint": self._defaults.mark(self.generation.fingerprint),
        }

    def usage(self) -> dict[str, Any]:
        """Token counts; a prompt counts once however many choices it has."""
        num_prompt = sum(map(len, self.prompt_ids))
        num_generated = sum(map(self.num_generated, self.choices))
        return {
            **_usage(num_prompt, num_generated),
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens()},
        }

    def num_cached_tokens(self, only_begun: bool = False) -> int:
        """Prompt tokens found in the prefix cache when the answer began; of each prompt the first choice counts, or none if that
        has to have begun and no chunk has anything of it."""
        counted = [
            choice.output.num_cached_tokens
            for choice in self.choices[:: self.request.n]
            if not only_begun or choice.num_sent > 0 or choice.has_ended
        ]
        return self._num_cached_before + sum(counted)

    def num_generated(self, choice: Choice) -> int:
        return len(choice.output.token_ids)

    def whole_extras(self) -> dict[str, Any]:
        return {}

    def first_chunk_extras(self, choice: Choice) -> dict[str, Any]:
        """What the first chunk of a stream, which is of ``choice``, has beside that."""
        return {}

    def opening_choice(self, choice: Choice) -> dict[str, Any] | None:
        """What a stream has of a choice before its text, or None if that is nothing."""
        return None

    @abstractmethod
    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        """A choice of the whole answer."""

    @abstractmethod
    def chunk_choice(self, choice: Choice, text: str, new: slice, first: bool) -> dict[str, Any] | None:
        """A choice with the new text and what came with the tokens in ``new``; None if that is nothing."""

    def prompt_logprobs(self, choice: Choice) -> list[dict[str, Any] | None] | None:
        """Log-probabilities of the prompt as vLLM reports them: token id to logprob, rank and text."""
        if self.request.prompt_logprobs is None or choice.output.prompt_logprobs is None:
            return None
        return [
            None if entry is None else self._by_token_id(token, entry)
            for token, entry in zip(self.prompt_of(choice), choice.output.prompt_logprobs)
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
