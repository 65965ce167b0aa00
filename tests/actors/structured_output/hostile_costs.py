"""What hostile grammars cost an engine with a vocabulary of 128,256, in milliseconds of a core.

python -m tests.actors.structured_output.hostile_costs [--examples 150]

``token``: an engine's thread, for a mask and the token taken; ``lock``: one call that holds the interpreter's lock, which stops
every other thread of the process; ``compile``: the whole of it, on a thread beside, lock released for most of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from actors.structured_output.grammars import Grammars
from actors.text.vocabulary import Vocabulary
from benchmarks.random_tokenizer import write_tokenizer
from cluster.errors import InvalidRequestError
from cluster.grammar import JSON_SCHEMA, MAX_GRAMMAR_CHARS, Grammar
from tests.actors.structured_output.locked_calls import wrapped
from tests.actors.structured_output.test_hostile_grammars import ATTACKS, FORCED, LARGE

VOCAB_SIZE, EOS, TOKENS = 128_256, 128_001, 24
costs: dict[str, list[tuple[float, str]]] = defaultdict(list)


def timed(kind: str, call: Callable[..., Any], what: str = "") -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return call(*arguments, **options)
        finally:
            costs[kind].append((time.thread_time() - began, what or call.__name__))

    return run


def measure(made: Grammars, grammar: Grammar, number: int) -> None:
    """Compile it anew, and follow an answer at random."""
    name = f"{grammar.kind} {grammar.text[:60]}"
    anew = Grammars(made._loaded_vocabulary, VOCAB_SIZE, [EOS])
    anew._trie = made._trie
    try:
        matcher = timed("compile", anew.matcher, name)(grammar)
    except InvalidRequestError:
        return
    rng, mask = np.random.default_rng(number), np.zeros(1 + VOCAB_SIZE // 32, np.int32)
    for _ in range(TOKENS):
        timed("token", matcher.fill, name)(mask)
        if matcher.has_failed or matcher.has_ended:
            return
        allowed = np.flatnonzero(np.unpackbits(mask[1:].view(np.uint8), bitorder="little"))
        timed("token", matcher.accept, name)(int(rng.choice(allowed)))


def vocabulary() -> Vocabulary:
    """Of words, digits and JSON, without a model's files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        write_tokenizer(path, VOCAB_SIZE)
        tokenizer = Tokenizer.from_file(str(path))
    texts = tokenizer.decode_batch([[i] for i in range(VOCAB_SIZE)], skip_special_tokens=False)
    tokens = [text.encode() for text in texts]
    special = {text: i for i, text in enumerate(texts) if text.startswith("<|special_")}
    return Vocabulary(np.fromiter(map(len, tokens), np.uint32), np.frombuffer(b"".join(tokens), np.uint8), special)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=150)
    examples = parser.parse_args().examples
    of_model = vocabulary()
    made = Grammars(lambda: of_model, VOCAB_SIZE, [EOS])
    made.compile(Grammar(JSON_SCHEMA, "{}"))
    with wrapped(lambda function, name: timed("lock", function, name)):
        measure_all(made, examples)
    for kind, of_kind in costs.items():
        longest = sorted(of_kind, reverse=True)[:5]
        print(
            f"{kind}: {len(of_kind)} times, longest {', '.join(f'{1e3 * took:.1f} ms' for took, _ in longest)}; {longest[0][1]}"
        )


def measure_all(made: Grammars, examples: int) -> None:
    """Known attacks, then random ones."""
    for number, grammar in enumerate([*(attack for attack, _ in ATTACKS), *FORCED]):
        measure(made, grammar if isinstance(grammar, Grammar) else Grammar(JSON_SCHEMA, json.dumps(grammar)), number)

    @seed(5)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(LARGE, st.integers(0, 99))
    def fuzz(schema: Any, number: int) -> None:
        if len(text := json.dumps(schema)) <= MAX_GRAMMAR_CHARS:
            measure(made, Grammar(JSON_SCHEMA, text), number)

    fuzz()


if __name__ == "__main__":
    main()
