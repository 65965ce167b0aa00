"""Simulations side by side as SVG: engines that serve or start over time, and below the share within the objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from deployments.simulator.oracle import Bound
from deployments.simulator.result import Result

_WIDTH, _LEFT, _RIGHT = 960, 48, 16
_TOP, _ENGINES, _GAP, _SHARE, _BOTTOM = 52, 250, 44, 120, 30
_COLOURS = ("#4e79a7", "#e15759", "#f28e2b", "#59a14f", "#b07aa1")
_ORACLE = "#555555"
# Every curve has so many points at most.
_POINTS = 480


def draw(results: Mapping[str, Result], bound: Bound, duration_s: float, slo_share: float) -> str:
    """The picture.

    Args:
        results: by name, in the order in which they are drawn and named.
        duration_s: of the load.
        slo_share: the share that is wanted.
    """
    height = _TOP + _ENGINES + _GAP + _SHARE + _BOTTOM
    grid = np.linspace(0, duration_s, _POINTS)
    curves = {name: _held(result.engines, grid) for name, result in results.items()}
    demand = bound.demand[np.minimum((grid / bound.bin_s).astype(int), len(bound.demand) - 1)]
    # A rule that wants ten times as many engines as the others leaves the picture above.
    most = min(max(float(c.max()) for c in (*curves.values(), demand)), 4 * float(demand.max()))
    lowest = min((s for r in results.values() for s in r.attained if not math.isnan(s)), default=0.0)
    engines = _Panel(_TOP, _ENGINES, 0.0, math.ceil(most * 1.05) or 1, duration_s)
    shares = _Panel(_TOP + _ENGINES + _GAP, _SHARE, math.floor(lowest * 10) / 10, 1.0, duration_s)
    parts = [*engines.frame("engines"), *shares.frame("within both objectives", is_share=True), *shares.hours()]
    parts.append(
        shares.line(np.array([0, duration_s]), np.array([slo_share, slo_share]), _ORACLE, ' stroke-dasharray="3 3"')
    )
    for colour, (name, result) in zip(_COLOURS, results.items()):
        parts.append(engines.line(grid, curves[name], colour))
        middles = (np.arange(len(result.attained)) + 0.5) * duration_s / max(len(result.attained), 1)
        parts.append(shares.line(middles, np.array(result.attained), colour))
    parts.append(engines.line(grid, demand, _ORACLE, ' stroke-dasharray="5 3"'))
    parts += _legend([*zip(results, _COLOURS), ("oracle, at least", _ORACLE)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11" '
        f'role="img" aria-label="Engines and attainment over time">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _held(sizes: Sequence[tuple[float, int]], grid: np.ndarray) -> np.ndarray:
    at = np.array([second for second, _ in sizes])
    return np.array([size for _, size in sizes], float)[np.maximum(np.searchsorted(at, grid, side="right") - 1, 0)]


class _Panel:
    """A plot of seconds against values from ``low`` to ``high``."""

    def __init__(self, top: int, height: int, low: float, high: float, duration_s: float) -> None:
        self._top, self._height, self._low, self._high = top, height, low, max(high, low + 1e-9)
        self._duration_s = max(duration_s, 1e-9)

    def _x(self, second: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * second / self._duration_s

    def _y(self, value: float) -> float:
        part = (min(max(value, self._low), self._high) - self._low) / (self._high - self._low)
        return self._top + self._height * (1 - part)

    def frame(self, title: str, is_share: bool = False) -> list[str]:
        parts = [f'<text x="{_LEFT}" y="{self._top - 6}" font-weight="bold">{escape(title)}</text>']
        for value in np.linspace(self._low, self._high, 5).tolist():
            y = self._y(value)
            text = f"{value:.0%}" if is_share else f"{value:.0f}"
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        return parts

    def hours(self) -> list[str]:
        unit, name = (86400.0, "d") if self._duration_s > 2 * 86400 else (60.0, "min")
        step = max(1.0, round(self._duration_s / unit / 12)) * unit
        y = self._top + self._height + 16
        return [
            f'<text x="{self._x(i * step):.1f}" y="{y}" text-anchor="middle">{i * step / unit:.0f} {name}</text>'
            for i in range(int(self._duration_s / step) + 1)
        ]

    def line(self, seconds: np.ndarray, values: np.ndarray, colour: str, more: str = "") -> str:
        points = " ".join(
            f"{self._x(second):.1f},{self._y(value):.1f}"
            for second, value in zip(seconds, values)
            if not math.isnan(value)
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"{more}/>'


def _legend(names: Sequence[tuple[str, str]]) -> list[str]:
    parts, x = [], float(_LEFT)
    for name, colour in names:
        parts.append(f'<rect x="{x:.0f}" y="12" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="18">{escape(name)}</text>')
        x += 40 + 6.2 * len(name)
    return parts
