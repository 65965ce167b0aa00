"""The answer of one sequence while it grows: tokens in, text out, cut where a stop says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.outputs import FINISH_STOP, TokenDelta, TokenLogprobs
from cluster.sampling_params import SamplingParams
from deployments.answers.stop_strings import StopStringMatcher

# Stands where the log-probabilities of resumed tokens were: they are never sent again.
_KNOWN_TO_CLIENT = TokenLogprobs(0.0, 1, [], [])


class Detokenizer(Protocol):
    """Turns ids into text one at a time; text of an incomplete character is held until it is complete.

    Attributes:
        takes_whole_texts: the text of a token that is whole by itself depends on nothing before it now.
    """

    @property
    def takes_whole_texts(self) -> bool: ...

    def push(self, token_id: int) -> str: ...


class TextEnd(Protocol):
    """Tells where a text is complete, other than by a stop string."""

    def end_in(self, text: str) -> int | None:
        """How much of the next piece of text belongs to the answer if it ends there; None if it goes on."""


class SequenceOutput:
    """Accumulates one sequence.

    Each ``push`` depends on the tokens alone and not on how they were grouped into deltas, so a streamed answer and a whole
    one have the same text. A character that an answer's end cut off is no part of the text; its tokens are in ``token_ids``.

    Attributes:
        is_plain: no text and no sequence of tokens is looked for, so that every token is settled at once.
        token_ids: all tokens generated so far, a stop token included; cut after the one that completed a stop string or the text.
        logprobs: one entry a token if asked for, else empty.
        prompt_logprobs: as the engine reported them, or None.
        finish_reason: "stop", "length" or "abort" once the sequence is over.
        stop_reason: the stop string, token id or token sequence that matched; None for other ends and length.
        num_cached_tokens: prompt tokens found in the prefix cache.
    """

    __slots__ = (
        "_detokenizer",
        "_end",
        "_eos",
        "_include_stop",
        "_is_complete",
        "_longest_seq",
        "_looks_at_text",
        "_matcher",
        "_min_tokens",
        "_pieces",
        "_pushed",
        "_stop_seqs",
        "_tail",
        "finish_reason",
        "is_plain",
        "logprobs",
        "num_cached_tokens",
        "prompt_logprobs",
        "stop_reason",
        "token_ids",
    )

    def __init__(
        self,
        detokenizer: Detokenizer,
        params: SamplingParams,
        eos_token_ids: Sequence[int] = (),
        include_stop: bool = False,
        end: TextEnd | None = None,
    ) -> None:
        """``end`` has read nothing yet; where it says that the text is complete, the answer is over with "stop"."""
        self._detokenizer = detokenizer
        self._matcher = StopStringMatcher(params.stop, include_stop)
        self._min_tokens = params.min_tokens
        self._end = end
        self._is_complete = False
        self._looks_at_text = bool(params.stop) or end is not None
        self._stop_seqs = params.stop_token_seqs
        self._longest_seq = max(map(len, self._stop_seqs), default=0)
        self.is_plain = not self._looks_at_text and not params.stop_token_seqs
        self._include_stop = include_stop
        self._eos = () if params.ignore_eos else tuple(eos_token_ids)
        self._tail: list[int] = []
        self._pushed = 0
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | list[int] | None = None
        self.num_cached_tokens = 0

    @property
    def text(self) -> str:
        """All text released so far."""
        if len(self._pieces) != 1:
            self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    @property
    def takes_whole_texts(self) -> bool:
        """Whether a token whose text is whole by itself, where ``is_plain`` and behind the first, adds just that text."""
        return self.finish_reason is None and self._detokenizer.takes_whole_texts

    @property
    def grown(self) -> tuple[list[int], list[str]]:
        """``token_ids`` and the pieces of ``text``, the same lists for as long as the sequence grows. Who appends a token and its
        text there, where ``takes_whole_texts``, does what ``push_token`` does."""
        return self.token_ids, self._pieces

    def push(self, delta: TokenDelta) -> str:
        """Take in the next tokens, return the text they release. After the end it does nothing."""
        if self.finish_reason is not None:
            return ""
        self.token_ids.extend(delta.token_ids)
        if self.is_plain and delta.index and not (delta.finish_reason or delta.logprobs or delta.prompt_logprobs):
            # As below, for most tokens of most answers.
            text = _joined(self._detokenizer, delta.token_ids)
            self._pieces.append(text)
            return text
        if delta.logprobs:
            self.logprobs.extend(delta.logprobs)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.index == 0:  # an attempt that continues finds its own tokens cached, which is not the client's prompt
            self.num_cached_tokens = delta.num_cached_tokens
        self._tail.extend(delta.token_ids)
        finished = delta.finish_reason is not None
        if finished:
            self._drop_matched_stop(delta)
        text = self._release(0 if finished else self._num_unsettled())
        if self._matcher.matched is not None or self._is_complete:
            self.finish_reason = FINISH_STOP
            self.stop_reason = self._matcher.matched
            del self.token_ids[self._pushed :], self.logprobs[self._pushed :]
        elif finished:
            text += self._matcher.finish()
            self.finish_reason = delta.finish_reason
            matched = delta.matched_stop
            self.stop_reason = None if isinstance(matched, int) and matched in self._eos else matched
        self._pieces.append(text)
        return text

    def push_token(self, token_id: int) -> str:
        """``push`` of a token behind the first of which nothing else is said, where ``is_plain``."""
        if self.finish_reason is not None:
            return ""
        self.token_ids.append(token_id)
        text = self._detokenizer.push(token_id)
        self._pieces.append(text)
        return text

    def resume(self, token_ids: list[int], finish_reason: str | None, with_logprobs: bool) -> bool:
        """Take in what a client has already; every later ``push`` does what it would have done after the same tokens.

        Returns:
            False if an answer with these tokens would have ended, and the client says it did not.
        """
        self.push(TokenDelta("", 0, 0, token_ids))
        if finish_reason is None and self.finish_reason is not None:
            return False
        self.finish_reason = finish_reason
        self.token_ids = list(token_ids)
        if with_logprobs:
            self.logprobs = [_KNOWN_TO_CLIENT] * len(token_ids)
        return True

    def _drop_matched_stop(self, delta: TokenDelta) -> None:
        if delta.finish_reason == FINISH_STOP and delta.matched_stop is not None and not self._include_stop:
            length = 1 if isinstance(delta.matched_stop, int) else len(delta.matched_stop)
            del self._tail[len(self._tail) - length :]

    def _num_unsettled(self) -> int:
        """Number of last tokens that begin a stop sequence: their text is no part of the answer if the sequence completes."""
        for length in range(min(len(self._tail), self._longest_seq), 0, -1):
            last = tuple(self._tail[-length:])
            if any(sequence[:length] == last for sequence in self._stop_seqs):
                return length
        return 0

    def _release(self, keep: int) -> str:
        settled = len(self._tail) - keep
        tokens, self._tail = self._tail[:settled], self._tail[settled:]
        if not self._looks_at_text:
            return _joined(self._detokenizer, tokens)
        released = []
        for token in tokens:
            self._pushed += 1
            text = self._detokenizer.push(token)
            end = None if self._end is None else self._end.end_in(text)
            released.append(self._matcher.push(text[:end], armed=self._pushed > self._min_tokens))
            if self._matcher.matched is not None:
                break
            if end is not None:
                self._is_complete = True
                released.append(self._matcher.finish())
                break
        return "".join(released)


def _joined(detokenizer: Detokenizer, token_ids: Sequence[int]) -> str:
    if len(token_ids) == 1:
        return detokenizer.push(token_ids[0])
    return "".join([detokenizer.push(token) for token in token_ids])
