"""Lengths of prompts and answers: a number, or a distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from cluster.errors import BiremeError

FORMS = "N, uniform:LOW-HIGH, exponential:MEAN[,MAX] or lognormal:MEAN,SIGMA[,MAX]"
_NUM_VALUES = {"fixed": (1, 1), "uniform": (2, 2), "exponential": (1, 2), "lognormal": (2, 3)}


@dataclass(frozen=True)
class Lengths:
    """A distribution of whole numbers from 1 on.

    Attributes:
        kind: fixed, uniform, exponential or lognormal.
        values: its parameters, in the order of ``FORMS``; what is longer than MAX is cut to it.
    """

    kind: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, flag: str) -> Lengths:
        """What ``flag`` was given.

        Raises:
            BiremeError: none of ``FORMS``.
        """
        kind, colon, rest = text.partition(":")
        values: tuple[float, ...]
        try:
            if not colon:
                kind, values = "fixed", (float(int(text)),)
            elif kind == "uniform":
                low, _, high = rest.partition("-")
                values = (float(int(low)), float(int(high)))
            elif kind in ("exponential", "lognormal"):
                values = tuple(map(float, rest.split(",")))
            else:
                raise ValueError
            fewest, most = _NUM_VALUES[kind]
            if not fewest <= len(values) <= most:
                raise ValueError
            is_sigma = [False, kind == "lognormal", False]
            if not all(
                math.isfinite(v) and (v >= 0 if sigma else 1 <= v <= 10**7) for v, sigma in zip(values, is_sigma)
            ):
                raise ValueError
            if kind == "uniform" and values[0] > values[1]:
                raise ValueError
        except ValueError:
            raise BiremeError(f"{flag}: got {text!r}, allowed: {FORMS}, tokens from 1 on", flag) from None
        return cls(kind, values)

    def spread(self, ratio: float) -> Lengths:
        """vLLM's ``--random-range-ratio``: evenly from (1 − ratio) to (1 + ratio) times a number."""
        if not ratio or self.kind != "fixed":
            return self
        middle = self.values[0]
        return Lengths("uniform", (max(1.0, math.floor(middle * (1 - ratio))), math.ceil(middle * (1 + ratio))))

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        if self.kind == "fixed":
            return int(self.values[0])
        if self.kind == "uniform":
            return rng.randint(int(self.values[0]), int(self.values[1]))
        if self.kind == "exponential":
            mean, *bound = self.values
            length = rng.expovariate(1 / mean)
        else:
            mean, sigma, *bound = self.values
            length = rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        return max(1, round(min([length, *bound])))
