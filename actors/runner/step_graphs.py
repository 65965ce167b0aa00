"""CUDA graphs of steps: forwards of decode steps, forwards of steps with prompts, and what follows a forward.

A decode step of n rows replays the smallest forward that holds n. One with prompts replays the smallest that holds its
tokens and the slots up to its last; only steps that the device computes faster than the host launches their kernels have such
graphs. Padding rows carry slot -1. The sampling is a graph of its own for each number of samples and kind of sampling,
whatever the forward was, one that ran op by op included: forwards leave the rows that sample in one place
(``Sampler.gather``). Rows behind them are of former steps, and of no slot.

Tensors that a graph reads or writes keep their addresses: the state, the packed rows and the rows that sample by design, the
hidden states because they are kept here.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import paddle

from actors.runner.graph_capture import CapturedGraph, GraphCapture, GraphSeries
from actors.runner.sampler import SamplingGraph
from actors.scheduling.step_plan import StepPlan
from cluster.process.cache import Progress

logger = logging.getLogger("bireme.engine")

_PROMPT_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


class PromptSize(NamedTuple):
    """Most tokens of a step with prompts, and how many slots are looked through for them."""

    tokens: int
    slots: int


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Rows: 1, 2, 4, 8, then in steps of 8 to 64, of 16 to 256, of 64 beyond; the last is ``max_num_seqs``."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(320, 1025, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def prompt_sizes(max_tokens: int, max_num_seqs: int) -> list[PromptSize]:
    """Of steps with prompts and at most ``max_tokens`` tokens; none where that is less than two.

    Padding tokens cost little where launching is what takes long; slots without rows cost each block of attention a look.
    """
    if max_tokens < 2:
        return []
    tokens = [size for size in _PROMPT_TOKENS if size < max_tokens] + [min(max_tokens, _PROMPT_TOKENS[-1])]
    slots = [size for size in (16, 64, 256) if size < max_num_seqs] + [max_num_seqs]
    return [PromptSize(*size) for size in itertools.product(tokens, slots)]


def capture_order(sizes: Sequence[int]) -> list[int]:
    """The largest, which serves every step, then powers of two, then what refines them: the best set for any limit."""
    largest, *others = sorted(set(sizes), reverse=True)
    return [largest, *sorted(others, key=lambda rows: (rows & (rows - 1) != 0, -rows))]


class StepGraphs:
    """Captures at construction: forward and plain sampling of decode steps first, then steps with prompts, then what further
    kinds of sampling there is room for.

    Attributes:
        decode_rows: rows of the decode forwards that were captured, ascending.
        prompts: sizes of the forwards with prompts that were captured, those of few tokens first.
        num_graphs, num_bytes: of all, and the memory that they took.

    Args:
        decode_rows, prompts: what is wanted.
        decode: enqueues packing, forward and gathering of that many rows and returns the hidden states.
        with_prompts: the same for a step with prompts.
        sample: enqueues what follows, up to the packed outputs.
        capture: where graphs are kept.
        progress: called as ``progress("decode graphs, 64 rows, 101.3 GiB free", done, total)``.
    """

    def __init__(
        self,
        decode_rows: Sequence[int],
        prompts: Sequence[PromptSize],
        decode: Callable[[int], paddle.Tensor],
        with_prompts: Callable[[PromptSize], paddle.Tensor],
        sample: Callable[[int, SamplingGraph], None],
        capture: GraphCapture,
        progress: Progress | None = None,
    ) -> None:
        self.decode_rows: list[int] = []
        self._decode: dict[int, CapturedGraph] = {}
        self._prompts: dict[PromptSize, CapturedGraph] = {}
        self._sampling: dict[SamplingGraph, dict[int, CapturedGraph]] = {kind: {} for kind in SamplingGraph}
        self._capture = capture
        order = capture_order(decode_rows)

        forwards, plain = capture.series(), capture.series()
        for rows in order:
            graph = forwards.capture(rows, functools.partial(decode, rows))
            if graph is None:
                continue
            self._decode[rows] = graph
            bisect.insort(self.decode_rows, rows)
            self._capture_sampling(plain, rows, sample, SamplingGraph.PLAIN)
            if progress:
                free = capture.free_bytes() / 2**30
                progress(f"decode graphs, {rows} rows, {free:.1f} GiB free", len(self.decode_rows), len(order))
        self._warn("decode graphs of %s rows", set(decode_rows) - self._decode.keys())

        forwards = capture.series()
        by_use = {tokens: use for use, tokens in enumerate(capture_order([size.tokens for size in prompts] or [0]))}
        for done, size in enumerate(sorted(prompts, key=lambda size: (-size.slots, by_use[size.tokens])), 1):
            graph = forwards.capture(size.tokens, functools.partial(with_prompts, size))
            if graph is not None:
                self._prompts[size] = graph
            if progress:
                progress(f"prompt graphs, {size.tokens} tokens in {size.slots} slots", done, len(prompts))
        self.prompts = sorted(self._prompts)
        served = {size.tokens for size in self.prompts}
        self._warn("graphs of steps with prompts and %s tokens", {size.tokens for size in prompts} - served)

        # Samplings of a kind and size that have no graph run op by op.
        for kind in [kind for kind in SamplingGraph if kind != SamplingGraph.PLAIN]:
            further = capture.series()
            for rows in [rows for rows in order if rows in self._decode]:
                self._capture_sampling(further, rows, sample, kind)
        self._sampled_rows = {kind: sorted(graphs) for kind, graphs in self._sampling.items()}
        for sampling, graphs in self._sampling.items():
            self._warn(f"graphs of {sampling.name.lower()} sampling of %s rows", self._decode.keys() - graphs.keys())

    def _capture_sampling(
        self, series: GraphSeries, rows: int, sample: Callable[[int, SamplingGraph], None], kind: SamplingGraph
    ) -> None:
        graph = series.capture(rows, functools.partial(sample, rows, kind))
        if graph is not None:
            self._sampling[kind][rows] = graph

    def _warn(self, what: str, missing: Iterable[int]) -> None:
        if missing:
            logger.warning(
                what + " were left out: more than decode_graph_memory_gb (%.2f GiB)",
                ", ".join(map(str, sorted(missing))),
                self._capture.max_bytes / 2**30,
            )

    @property
    def num_graphs(self) -> int:
        return self._capture.num_graphs

    @property
    def num_bytes(self) -> int:
        return self._capture.num_bytes

    def forward(self, plan: StepPlan) -> CapturedGraph | None:
        """What packs and computes a step's rows, of which it has some, and gathers those that sample; None: op by op."""
        if not plan.has_prefill:
            rows = _at_least(self.decode_rows, plan.num_tokens)
            return None if rows is None else self._decode[rows]
        tokens, slots = plan.num_tokens, max(plan.scheduled) + 1
        return next((self._prompts[s] for s in self.prompts if s.tokens >= tokens and s.slots >= slots), None)

    def sample(self, num_samples: int, kind: SamplingGraph) -> bool:
        """Replay what follows a forward; False if it was not captured."""
        rows = _at_least(self._sampled_rows[kind], num_samples)
        if rows is None:
            return False
        self._sampling[kind][rows].replay()
        return True


def _at_least(sizes: list[int], wanted: int) -> int | None:
    """The smallest of the ascending ``sizes`` that is not below ``wanted``."""
    at = bisect.bisect_left(sizes, wanted)
    return sizes[at] if at < len(sizes) else None
