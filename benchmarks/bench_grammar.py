"""What a grammar costs a step on this machine: rows under one schema, under different ones, and plain, in turn.

python -m benchmarks.bench_grammar [--rows 1,4,8] [--rounds 4]
python -m benchmarks.bench_grammar --device gpu --model llama_8b --rows 1,8,64    random weights, and 128,256 tokens of its size
python -m benchmarks.bench_grammar --model small_llama    two small layers under that vocabulary: what masks cost, and little else
python -m benchmarks.bench_grammar --parts    what each part of a masked step takes of a core where the host makes the masks

Every turn of a kind takes the same tokens, so step i of one turn does the work of step i of any other. The cost is told from
the best of each step over all turns, which other work on the machine changes least, and from medians of whole turns. Times are
the device's own, from one step's end to the next: the host's stamps jitter, and where one comes late the next step looks short.
"Of a core" is all that the process computed in a turn, prompts included, which other work changes less; say `--threads 1`, as
threads that wait for each other count too. At one row "one schema" and "different" are the same schema: by how much they differ
says what the machine's other work does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from actors.engine.engine import Engine
from actors.engine.loading import load_engine
from actors.runner import model_runner
from actors.structured_output.native import NativeMatcher
from benchmarks.random_tokenizer import write_tokenizer
from benchmarks.workload import PROMPT_TOKENS, prompt
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.grammar import JSON_SCHEMA, Grammar
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from gpu_ops import sampling

Measured = TypeVar("Measured")
_TOKENS = 48
_LLAMA_8B = Path(__file__).parents[1] / "ray_configs/llama_8b/config.json"
# Of --model, what is another than in Llama 3.1 8B.
RANDOM_MODELS = {
    "llama_8b": {},
    "small_llama": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    },
}  # fmt: skip


def schema(number: int) -> Grammar:
    """Records that go on for longer than an answer; each number has a schema of its own."""
    record = {
        "type": "object",
        "properties": {
            f"name{number}": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["lake", "river", "sea", f"other{number}"]},
            "length_km": {"type": "number", "minimum": 0},
            "countries": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
        "required": [f"name{number}", "kind", "length_km", "countries"],
        "additionalProperties": False,
    }
    return Grammar(JSON_SCHEMA, json.dumps({"type": "array", "items": record, "minItems": 50}))


GRAMMARS = {"plain": lambda row: None, "one schema": lambda row: schema(0), "different": schema}


def seconds_of_steps(engine: Engine, kind: str, rows: int, run: int) -> list[float]:
    """Of steps that only decode, while all rows are there: from the end of one on the device to the end of the next."""
    for row in range(rows):
        params = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True, grammar=GRAMMARS[kind](row))
        engine.add_request(EngineRequest(f"{kind} {run} {row}", prompt(row), params))
    ends: list[float] = []
    while engine.has_work():
        if len(engine.step()) == rows:
            assert engine.executor.last_saved is not None
            ends.append(engine.executor.last_saved.device_end)
    return [after - before for before, after in itertools.pairwise(ends)][4:-2]


def core_seconds_of_parts(engine: Engine, rows: int, run: int) -> dict[str, list[float]]:
    """What each call of a part took of a core while ``rows`` rows with a schema each were computed, the forward beside it."""
    parts = {"mask made": (NativeMatcher, "fill"), "token taken": (NativeMatcher, "consume")}
    taken: dict[str, list[float]] = {}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = taken.setdefault(part, [])

        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                calls.append(time.thread_time() - started)

        return call

    with contextlib.ExitStack() as stack:
        for part, (owner, name) in {**parts, "sampled": (sampling, "sample")}.items():
            stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        seconds_of_steps(engine, "different", rows, run)
    return taken


def first_token_s(engine: Engine, grammar: Grammar | None, run: int) -> float:
    """From asking to the first token of a request that is alone; its prompt is in no cache. A new grammar is compiled first."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, grammar=grammar)
    started = time.perf_counter()
    engine.add_request(EngineRequest(f"first {run}", prompt(1000 + run), params))
    while not engine.step():
        pass
    took = time.perf_counter() - started
    while engine.has_work():
        engine.step()
    return took


def settings(model: str, folder: Path) -> dict[str, Any]:
    """Of the engine; what a random model needs is written into ``folder``."""
    if model not in RANDOM_MODELS:
        return {"model": model}
    config = {**json.loads(_LLAMA_8B.read_text()), **RANDOM_MODELS[model]}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json", config["vocab_size"])
    return {"model": str(folder), "load_format": "dummy", "block_size": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    row_counts = [int(rows) for rows in arguments.rows.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, Any] = {"max_num_seqs": max(row_counts), "max_model_len": 512}
        if arguments.device == "cpu":
            sizes |= {"num_kv_blocks": 256, "num_threads": arguments.threads}
        # The tokenizer is read at the first grammar.
        of_model = settings(arguments.model, Path(folder))
        # Compute threads would make masks where no part of them can be told apart.
        by_host = mock.patch.object(model_runner, "compute_threads_make_masks", return_value=False)
        with by_host if arguments.parts else contextlib.nullcontext():
            engine = load_engine(EngineConfig(device=arguments.device, **sizes, **of_model))
        engine.executor.align_clocks()
        (show_parts if arguments.parts else compare)(engine, row_counts, arguments.rounds)


def show_parts(engine: Engine, row_counts: list[int], rounds: int) -> None:
    """Print what parts of a masked step take; closes ``engine``."""
    for rows in row_counts:
        core_seconds_of_parts(engine, rows, -1)
        runs = [core_seconds_of_parts(engine, rows, run) for run in range(rounds)]
        for part in runs[0]:
            calls = sorted(call for run in runs for call in run[part])
            median, slow = calls[len(calls) // 2], calls[9 * len(calls) // 10]
            print(
                f"{rows} rows, {part:13}: {1e6 * median:5.0f} µs of a core a call, nine in ten at most {1e6 * slow:5.0f}"
            )
    engine.close()


def compare(engine: Engine, row_counts: list[int], rounds: int) -> None:
    """Print what each kind of grammar costs; closes ``engine``."""
    print(
        f"{engine.executor.device_name}, {engine.info.model_id}, vocabulary {engine.info.vocab_size}, {PROMPT_TOKENS} + {_TOKENS}"
    )
    for rows in row_counts:
        for kind in GRAMMARS:
            seconds_of_steps(engine, kind, rows, -1)  # compiles, and fills the cache of prefixes
        cores: dict[str, list[float]] = {kind: [] for kind in GRAMMARS}

        def turn(kind: str, run: int, rows: int = rows, cores: dict[str, list[float]] = cores) -> list[float]:
            began = time.process_time()
            steps = seconds_of_steps(engine, kind, rows, run)
            cores[kind].append(time.process_time() - began)
            return steps

        of_kind = in_turns(GRAMMARS, rounds, turn)
        best = {kind: statistics.mean(map(min, zip(*turns))) for kind, turns in of_kind.items()}
        medians = {kind: [statistics.median(turn) for turn in turns] for kind, turns in of_kind.items()}
        for kind, turns in medians.items():
            ratio = statistics.median(a / b for a, b in zip(turns, medians["plain"]))
            print(
                f"{rows} rows, {kind:10}: best of {rounds} {1e3 * best[kind]:7.3f} ms a step, {best[kind] / best['plain']:.3f}"
                f" of plain; medians of turns {1e3 * statistics.median(turns):.2f} ms, {ratio:.3f};"
                f" of a core, best turn {min(cores[kind]) / min(cores['plain']):.3f}",
                flush=True,
            )
    count = itertools.count()
    grammars = {
        "plain": lambda run: None,
        "cached": lambda run: schema(0),
        "new schema": lambda run: schema(10_000 + run),
    }
    of_kind = in_turns(grammars, 4 * rounds, lambda kind, run: first_token_s(engine, grammars[kind](run), next(count)))
    plain = of_kind["plain"]
    for kind, first in of_kind.items():
        more = statistics.median(a - b for a, b in zip(first, plain))
        print(
            f"first token, {kind:10}: {1e3 * statistics.median(first):7.2f} ms, {1e3 * more:+.2f} ms,"
            f" {statistics.median(a / b for a, b in zip(first, plain)):.3f} of plain"
        )
    engine.close()


def in_turns(kinds: Iterable[str], rounds: int, measure: Callable[[str, int], Measured]) -> dict[str, list[Measured]]:
    """``measure(kind, round)`` of each kind; another one comes first in each round, so that none always follows the same."""
    measured: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    order = list(measured)
    for run in range(rounds):
        for kind in order:
            measured[kind].append(measure(kind, run))
        order.append(order.pop(0))
    return measured


if __name__ == "__main__":
    main()
