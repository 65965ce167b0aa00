"""The figures of a run, under the names that vLLM's ``bench serve`` has for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.bench.load import Sample
from cluster.bench.processes import Result

LATENCIES = ("ttft", "tpot", "itl", "e2el")
_PERCENTILES = (90, 95, 99)


@dataclass(frozen=True)
class Targets:
    """What an answer must keep; seconds, None: anything will do.

    Attributes:
        ttft: to the first token.
        tpot: mean from token to token.
    """

    ttft: float | None = None
    tpot: float | None = None

    def keeps(self, sample: Sample) -> bool:
        """Whether an answer is whole and in time."""
        if not sample.is_whole or (self.ttft is not None and sample.ttft > self.ttft):
            return False
        return self.tpot is None or (sample.tpot or 0.0) <= self.tpot


def summarise(result: Result, targets: Targets) -> dict[str, Any]:
    """Figures of a run; times in milliseconds, None where nothing was measured.

    Percentiles are over whole answers (``ttft``, ``tpot``, ``e2el``) or over the gaps between events of them (``itl``). What was
    cut at the end is neither completed nor failed, and its tokens count nowhere.
    """
    whole = [sample for sample in result.samples if sample.is_whole]
    failed = [sample for sample in result.samples if sample.error is not None]
    seconds = max(result.seconds, 1e-9)
    num_input, num_output = sum(s.prompt_tokens for s in whole), sum(s.output_tokens for s in whole)
    cached = [s.cached_tokens for s in whole if s.cached_tokens is not None]
    figures: dict[str, Any] = {
        "duration": result.seconds,
        "completed": len(whole),
        "failed": len(failed),
        "unfinished": len(result.samples) - len(whole) - len(failed),
        "stopped": result.is_stopped,
        "total_input_tokens": num_input,
        "total_cached_tokens": sum(cached) if cached else None,
        "total_output_tokens": num_output,
        "wanted_output_tokens": sum(s.wanted_tokens for s in whole),
        "request_throughput": len(whole) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_input + num_output) / seconds,
        "events": sum(len(s.arrivals) for s in whole),
    }
    for name, values in latencies(whole).items():
        figures |= _statistics(name, 1e3 * values)
    figures |= _statistics("late", 1e3 * np.array([s.asked - s.due for s in result.samples]))
    if targets != Targets():
        counted = len(whole) + len(failed)
        good = sum(map(targets.keeps, whole))
        figures |= {
            "slo_share": good / counted if counted else None,
            "request_goodput": good / seconds,
        }
    figures["client_cpu_shares"] = result.cpu_shares
    figures["errors"] = dict(Counter(s.error for s in failed).most_common())
    figures["warm_up_errors"] = len(result.warm_up_errors)
    return figures


def latencies(whole: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Seconds of whole answers, by ``LATENCIES``."""
    return {
        "ttft": np.array([sample.ttft for sample in whole]),
        "tpot": np.array([tpot for sample in whole if (tpot := sample.tpot) is not None]),
        "itl": _joined(np.diff(np.frombuffer(sample.arrivals)) for sample in whole),
        "e2el": np.array([sample.end - sample.asked for sample in whole]),
    }


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.concatenate(found) if found else np.array([])


def _statistics(name: str, values_ms: np.ndarray) -> dict[str, float | None]:
    if not len(values_ms):
        return {f"{kind}_{name}_ms": None for kind in ("mean", "std", "median", *(f"p{p}" for p in _PERCENTILES))}
    found = {
        "mean": values_ms.mean(),
        "std": values_ms.std(),
        "median": np.median(values_ms),
        **{f"p{p}": np.percentile(values_ms, p) for p in _PERCENTILES},
    }
    return {f"{kind}_{name}_ms": round(float(value), 4) for kind, value in found.items()}


def details(result: Result) -> dict[str, list]:
    """What was seen of each request, in the order in which they were due; seconds from the beginning of the run."""
    rows: list[dict[str, Any]] = []
    for sample in sorted(result.samples, key=lambda s: (s.due, s.index)):
        rows.append(
            {
                "sent": round(sample.asked - result.begin, 6),
                "late": round(sample.asked - sample.due, 6),
                "ttft": round(sample.ttft, 6) if sample.arrivals else None,
                "tpot": round(sample.tpot, 6) if sample.is_whole and sample.tpot is not None else None,
                "e2el": round(sample.end - sample.asked, 6),
                "input_tokens": sample.prompt_tokens,
                "output_tokens": sample.output_tokens,
                "error": "unfinished" if sample.is_cut else sample.error,
            }
        )
    return {"requests": rows}
