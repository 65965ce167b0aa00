"""Recorded load: requests with their times and lengths, or rates alone. The first line says which of three formats it is."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from cluster.errors import BiremeError

# Tokens of one of Mooncake's hashed blocks.
_BLOCK_TOKENS = 512
_AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_RATES = ["second", "requests_per_second"]
FORMATS = (
    "CSV with TIMESTAMP,ContextTokens,GeneratedTokens (Azure), JSON lines with timestamp, input_length, output_length, hash_ids "
    "(Mooncake), or CSV with second,requests_per_second (ServeGen)"
)


@dataclass(frozen=True)
class Recorded:
    """One request of a recording.

    Attributes:
        at: seconds from the first one.
        prefix: (name, tokens) of the blocks of its prompt, in order.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Trace:
    """A recording: requests, or rates; the other one is empty.

    Attributes:
        rates: (second, requests a second from then on).
        end_s: when the last rate ends; None: it lasts as long as the one before, or ten minutes if it is the only one.
    """

    requests: tuple[Recorded, ...] = ()
    rates: tuple[tuple[float, float], ...] = ()
    end_s: float | None = None

    @property
    def step_s(self) -> float:
        """How long the last rate lasts."""
        if self.end_s is not None:
            return self.end_s - self.rates[-1][0]
        return self.rates[-1][0] - self.rates[-2][0] if len(self.rates) > 1 else 600.0


def read_trace(path: Path, start_s: float = 0.0, seconds: float | None = None) -> Trace:
    """The part of a recording that begins at ``start_s`` and lasts ``seconds``.

    Raises:
        BiremeError: it is in none of the formats, or a line is wrong, or nothing is in that part.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            trace = _part(_read(file), start_s, float("inf") if seconds is None else start_s + seconds)
    except OSError as error:
        raise BiremeError(f"{path}: {error.strerror}", "--trace") from None
    except UnicodeDecodeError as error:
        raise BiremeError(f"{path} is no recording: byte {error.start} is not UTF-8", "--trace") from None
    except _LineError as error:
        raise BiremeError(f"{path}, {error}", "--trace") from None
    if not trace.requests and not trace.rates:
        raise BiremeError(f"{path}: nothing was recorded from second {start_s:g} on", "--trace")
    return trace


class _LineError(Exception):
    pass


def _read(file: TextIO) -> Trace:
    first = file.readline()
    if first.lstrip().startswith("{"):
        return _from_first(_mooncake(itertools.chain([first], file)))
    names = [name.strip() for name in next(csv.reader([first]), [])]
    if set(_AZURE) <= set(names):
        return _from_first(_azure(csv.DictReader(file, names)))
    if set(_RATES) <= set(names):
        return Trace(rates=_in_order(_rates(csv.DictReader(file, names))))
    raise _LineError(f"line 1: got {first.strip()[:80]!r}, allowed: {FORMATS}")


def _from_first(requests: Iterable[Recorded]) -> Trace:
    """In order of time, which not every recording is in."""
    ordered = sorted(requests, key=lambda request: request.at)
    begin = ordered[0].at if ordered else 0.0
    return Trace(tuple(Recorded(r.at - begin, r.prompt_tokens, r.output_tokens, r.prefix) for r in ordered))


def _in_order(rates: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    ordered = sorted(rates)
    for (second, _), (next_one, _) in itertools.pairwise(ordered):
        if second == next_one:
            raise _LineError(f"second {second:g} has two rates")
    return tuple(ordered)


def _azure(rows: Iterable[dict[str, Any]]) -> Iterator[Recorded]:
    for number, row in enumerate(rows, 2):
        try:
            yield _checked(_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (ValueError, TypeError) as error:
            raise _LineError(f"line {number}: {error}") from None


def _seconds(text: str) -> float:
    """Python before 3.11 reads three or six digits of a second; recordings have seven."""
    whole, _, digits = text.strip().removesuffix("Z").partition(".")
    digits = digits.partition("+")[0]
    moment = datetime.fromisoformat(whole.partition("+")[0]).replace(tzinfo=timezone.utc)
    return moment.timestamp() + (float(f"0.{digits}") if digits else 0.0)


def _mooncake(lines: Iterable[str]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at, tokens = float(row["timestamp"]) / 1e3, int(row["input_length"])
            left, prefix = tokens, []
            for name in row.get("hash_ids", ()):
                prefix.append((int(name), min(left, _BLOCK_TOKENS)))
                left -= prefix[-1][1]
                if left <= 0:
                    break
            yield _checked(at, tokens, int(row["output_length"]), tuple(prefix))
        except KeyError as error:
            raise _LineError(f"line {number}: there is no {error}") from None
        except (ValueError, TypeError) as error:
            raise _LineError(f"line {number}: {error}") from None


def _rates(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    for number, row in enumerate(rows, 2):
        try:
            second, rate = float(row["second"]), float(row["requests_per_second"])
        except (ValueError, TypeError) as error:
            raise _LineError(f"line {number}: {error}") from None
        if not 0 <= rate < float("inf") or not abs(second) < float("inf"):
            raise _LineError(f"line {number}: rates are not negative, and both are numbers")
        yield second, rate


def _checked(at: float, prompt: int, output: int, prefix: tuple[tuple[int, int], ...] = ()) -> Recorded:
    if not abs(at) < float("inf") or prompt < 0 or output < 0:
        raise ValueError("a time is no number, or a length is negative")
    # A recording counts what was generated: nothing is a request that failed there, and one token is the least to ask for.
    return Recorded(at, max(prompt, 1), max(output, 1), prefix)


def _part(trace: Trace, start: float, end: float) -> Trace:
    requests = tuple(
        Recorded(r.at - start, r.prompt_tokens, r.output_tokens, r.prefix)
        for r in sorted(trace.requests, key=lambda r: r.at)
        if start <= r.at < end
    )
    if not trace.rates:
        return Trace(requests)
    seconds = [second for second, _ in trace.rates]
    ends = [*seconds[1:], seconds[-1] + trace.step_s]
    kept = [i for i in range(len(seconds)) if seconds[i] < end and ends[i] > start]
    rates = tuple((max(0.0, seconds[i] - start), trace.rates[i][1]) for i in kept)
    return Trace((), rates, min(end, ends[kept[-1]]) - start if kept else None)
