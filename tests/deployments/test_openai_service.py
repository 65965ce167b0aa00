"""The way from a request body to text, with the engines played by a list of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.gguf_tokenizer import build_tokenizer
from actors.tokenizer import Tokenizer, TokenizerParts
from cluster.outputs import FINISH_LENGTH, TokenDelta
from deployments.ingress_metrics import IngressMetrics
from deployments.openai_service import OpenAiService
from deployments.sampling_request import ModelLimits
from tests.conftest import GOLDEN


def sentencepiece_tokenizer() -> Tokenizer:
    metadata = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))["metadata"]
    backend = build_tokenizer(metadata, Path("sentencepiece"))
    return Tokenizer(TokenizerParts(backend, chat_template="{{ messages[0].content }}"), "sentencepiece")


class Engines:
    """Stands where the EngineClient is: every sequence gets the same tokens at once."""

    subscriber = "test"

    def __init__(self, token_ids: list[int]) -> None:
        self.metrics = IngressMetrics()
        self._token_ids = token_ids

    def submit(self, entry, deliver, fail):
        deliver(TokenDelta(entry.request_id, entry.attempt, 0, self._token_ids, finish_reason=FINISH_LENGTH))

    def cancel(self, submission):
        pass


@pytest.mark.parametrize("kind", ["completion", "chat"])
async def test_only_a_completion_begins_with_sentencepieces_space(kind):
    """A completion goes on in the middle of the prompt's text; a chat's answer is a text of its own."""
    tokenizer = sentencepiece_tokenizer()
    token_ids = tokenizer.encode("the sea", add_special_tokens=False)
    service = OpenAiService(Engines(token_ids), tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
    if kind == "completion":
        generation, answer = await service.completion({"prompt": "by"})
    else:
        generation, answer = await service.chat({"messages": [{"role": "user", "content": "by"}]})
    assert await generation.read() == {0: " the sea" if kind == "completion" else "the sea"}
    assert answer.whole()["usage"]["completion_tokens"] == len(token_ids)
