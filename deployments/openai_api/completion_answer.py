"""The answer to a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.text.detokenizer import IncrementalDetokenizer
from cluster.outputs import TokenLogprobs
from deployments.http.sequence_output import SequenceOutput
from deployments.openai_api.answer import ALL, OpenAiResponse, finite
from deployments.openai_api.protocol import CompletionRequest
from deployments.openai_api.text_offsets import TextOffsets, prompt_offsets


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
            self._offsets = [self._new_offsets(i, output) for i, output in enumerate(self.generation.outputs)]

    def _new_offsets(self, index: int, output: SequenceOutput) -> TextOffsets:
        """Behind the tokens that ``output`` has: those of a client who resumes."""
        prompt, skips_special = index // self.request.n, self.request.skip_special_tokens
        detokenizer = IncrementalDetokenizer(self.tokenizer, skips_special, continues=self.prompt_ids[prompt])
        offsets = TextOffsets(detokenizer, len(self.prompt_texts[prompt]))
        for token in output.token_ids:
            offsets.push(token)
        return offsets

    def num_generated(self, output: SequenceOutput) -> int:
        return 0 if self._prompt_only else len(output.token_ids)

    def num_echoed(self, index: int) -> int:
        return len(self.prompt_texts[index // self.request.n]) if self.request.echo else 0

    def whole_choice(self, index: int, output: SequenceOutput) -> dict[str, Any]:
        return self._choice(index, output.text, output, ALL, first=True)

    def chunk_choice(
        self, index: int, text: str, output: SequenceOutput, new: slice, first: bool
    ) -> dict[str, Any] | None:
        with_tokens = self.request.return_token_ids or self.request.logprobs is not None
        if not (text or first or output.finish_reason or (with_tokens and new.stop > new.start)):
            return None
        return self._choice(index, text, output, new, first)

    def _choice(self, index: int, text: str, output: SequenceOutput, new: slice, first: bool) -> dict[str, Any]:
        prompt = index // self.request.n
        if self._prompt_only:
            text = ""
        if first and self.request.echo:
            text = self.prompt_texts[prompt] + text
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, output, new, first),
            "finish_reason": "length" if self._prompt_only and output.finish_reason else output.finish_reason,
        }
        if output.finish_reason is not None:
            choice["stop_reason"] = None if self._prompt_only else output.stop_reason
        if self.request.return_token_ids:
            choice["token_ids"] = [] if self._prompt_only else output.token_ids[new]
            if first:
                choice["prompt_token_ids"] = self.prompt_ids[prompt]
        if first and self.request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self.prompt_logprobs(index, output)
        return choice

    def _logprobs(self, index: int, output: SequenceOutput, new: slice, first: bool) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        tokens: list[int] = [] if self._prompt_only else output.token_ids[new]
        entries: list[TokenLogprobs | None] = [] if self._prompt_only else list(output.logprobs[new])
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
