"""The answer to a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.text.detokenizer import IncrementalDetokenizer
from cluster.outputs import TokenLogprobs
from deployments.answers.choice import Choice
from deployments.openai_api.answers.answer import ALL, OpenAiResponse, finite
from deployments.openai_api.answers.text_offsets import TextOffsets, prompt_offsets
from deployments.openai_api.requests.protocol import CompletionRequest


class CompletionAnswer(OpenAiResponse):
    """Answer to a completion; ``prompt_texts`` are what echo repeats."""

    id_prefix = "cmpl"
    object_name = chunk_name = "text_completion"
    request: CompletionRequest

    def __init__(self, *args: Any, prompt_texts: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompt_texts = prompt_texts
        # The engine always samples; asked for no tokens at all, the one it made is not shown.
        self._prompt_only = self.request.max_tokens == 0
        self._offsets: list[TextOffsets] = []
        if self.request.logprobs is not None:
            self._offsets = list(map(self._new_offsets, self.choices))

    def _new_offsets(self, choice: Choice) -> TextOffsets:
        """Behind the tokens that the choice has: those of a client who resumes."""
        skips_special = self.request.skip_special_tokens
        detokenizer = IncrementalDetokenizer(self.tokenizer, skips_special, continues=self.prompt_of(choice))
        offsets = TextOffsets(detokenizer, len(self._prompt_text_of(choice)))
        for token in choice.output.token_ids:
            offsets.push(token)
        return offsets

    def _prompt_text_of(self, choice: Choice) -> str:
        return self.prompt_texts[choice.index // self.request.n]

    def num_generated(self, choice: Choice) -> int:
        return 0 if self._prompt_only else super().num_generated(choice)

    @property
    def adds_to_text(self) -> bool:
        return self.request.logprobs is not None or self._prompt_only

    def num_echoed(self, choice: Choice) -> int:
        return len(self._prompt_text_of(choice)) if self.request.echo else 0

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        return self._body(choice, choice.output.text, ALL, first=True)

    def chunk_choice(self, choice: Choice, text: str, new: slice, first: bool) -> dict[str, Any] | None:
        with_tokens = self.request.return_token_ids or self.request.logprobs is not None
        if not (text or first or choice.output.finish_reason or (with_tokens and new.stop > new.start)):
            return None
        return self._body(choice, text, new, first)

    def _body(self, choice: Choice, text: str, new: slice, first: bool) -> dict[str, Any]:
        output = choice.output
        if self._prompt_only:
            text = ""
        if first and self.request.echo:
            text = self._prompt_text_of(choice) + text
        body = {
            "index": choice.index,
            "text": text,
            "logprobs": self._logprobs(choice, new, first),
            "finish_reason": "length" if self._prompt_only and output.finish_reason else output.finish_reason,
        }
        if output.finish_reason is not None:
            body["stop_reason"] = None if self._prompt_only else output.stop_reason
        if self.request.return_token_ids:
            body["token_ids"] = [] if self._prompt_only else output.token_ids[new]
            if first:
                body["prompt_token_ids"] = self.prompt_of(choice)
        if first and self.request.prompt_logprobs is not None:
            body["prompt_logprobs"] = self.prompt_logprobs(choice)
        return body

    def _logprobs(self, choice: Choice, new: slice, first: bool) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        output = choice.output
        tokens: list[int] = [] if self._prompt_only else output.token_ids[new]
        entries: list[TokenLogprobs | None] = [] if self._prompt_only else list(output.logprobs[new])
        offsets = [self._offsets[choice.index].push(token) for token in tokens]
        if first and self.request.echo and output.prompt_logprobs is not None:
            prompt = self.prompt_of(choice)
            tokens = [*prompt, *tokens]
            entries = [*output.prompt_logprobs, *entries]
            offsets = prompt_offsets(self.tokenizer, prompt, self._prompt_text_of(choice)) + offsets
        texts = [self.token_name(token) for token in tokens]
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
            tops.setdefault(self.token_name(token), finite(logprob))
        tops.setdefault(text, finite(entry.logprob))
        return tops
