"""Prompts of a given length that no cache has seen, or that begin as others do: token ids, or text."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.bench.load import Request

# Common enough to be one token each in most vocabularies.
_WORDS = (
    "time year people way day man thing life child world school state family student group country problem hand part place "
    "case week company system program question work number night point home water room mother area money story fact month "
    "lot right study book eye job word business issue side kind head house service friend father power hour game line end "
    "member law car city name"
)
_PIECE = 32
_NUM_PIECES = 256
# Random tokens that a prompt, and each piece of a prefix, begins with: enough that no two begin alike.
_HEAD = 6
_KEPT_PREFIXES = 4096


@dataclass(frozen=True)
class PromptKind:
    """How prompts are made.

    Attributes:
        is_text: text instead of token ids.
        seed: the same seed makes the same prompts.
        low, high: token ids are from here to below there.
        tokens_a_word, tokens_around: how text is counted: so many tokens a word, and so many around all of them.
    """

    is_text: bool
    seed: int
    low: int = 1000
    high: int = 30_000
    tokens_a_word: float = 1.0
    tokens_around: float = 0.0

    def words(self, tokens: int, around: bool) -> int:
        """How many words, or ids, make ``tokens``."""
        if not self.is_text:
            return tokens
        return max(1, round((tokens - self.tokens_around * around) / self.tokens_a_word))


class Prompts:
    """Makes prompts from pieces that are drawn once, so that a long one costs little."""

    def __init__(self, kind: PromptKind) -> None:
        self._kind = kind
        rng = random.Random(f"pieces {kind.seed}")
        self._separator = " " if kind.is_text else ","
        self._pieces = [self._drawn(rng, _PIECE) for _ in range(_NUM_PIECES)]
        self._joined = [self._separator.join(piece) for piece in self._pieces]
        self._prefix = functools.lru_cache(_KEPT_PREFIXES)(self._make_prefix)

    def prompt(self, request: Request) -> str:
        """The prompt as JSON: a list of ids, or a string."""
        prefix = [self._prefix(name, self._kind.words(tokens, False)) for name, tokens in request.prefix]
        rest = request.prompt_tokens - sum(tokens for _, tokens in request.prefix)
        if rest > 0 or not prefix:
            rng = random.Random(f"prompt {self._kind.seed} {request.index}")
            prefix.append(self._run(rng, self._kind.words(max(rest, 1), True)))
        body = self._separator.join(prefix)
        return f'"{body}"' if self._kind.is_text else f"[{body}]"

    def _make_prefix(self, name: int, words: int) -> str:
        return self._run(random.Random(f"prefix {self._kind.seed} {name}"), words)

    def _run(self, rng: random.Random, words: int) -> str:
        """``words`` that begin like no others."""
        head = self._drawn(rng, min(words, _HEAD))
        whole, rest = divmod(words - len(head), _PIECE)
        parts = [self._separator.join(head), *rng.choices(self._joined, k=whole)]
        if rest:
            parts.append(self._separator.join(rng.choice(self._pieces)[:rest]))
        return self._separator.join(parts)

    def _drawn(self, rng: random.Random, count: int) -> list[str]:
        if self._kind.is_text:
            return rng.choices(_WORDS.split(), k=count)
        return [str(rng.randrange(self._kind.low, self._kind.high)) for _ in range(count)]
