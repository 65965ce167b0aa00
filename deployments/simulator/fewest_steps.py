"""How few steps any schedule within the objective for a token can have, whatever the mix of requests at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deployments.simulator.arrivals import Array
from deployments.simulator.setup import SimulatorSettings

_ROUNDING = 1e-9
# A program of four unknowns is solved in about a dozen exchanges.
_MOST_EXCHANGES = 1000


class Totals(NamedTuple):
    """Of a load, or of a part: tokens of prompts; tokens that rows decode; tokens of context that these look back at."""

    prompt: float
    decoded: float
    context: float


def fewest_steps(totals: Totals, settings: SimulatorSettings) -> float:
    """Steps, not whole ones, without which no schedule can compute ``totals`` within the objective for a token.

    An engine's time is ``costs.step`` for each step plus the work in it, and the work is given. A step has ``p`` tokens of
    prompts, ``r`` rows and ``k`` tokens of context, within slots, budget and memory, and takes ``t(p, r, k)``. Each answer
    that meets its objective has steps of at most ``T`` on average; summed over answers, ``r (t - T)`` over all steps is at
    most 0. For any multipliers ``a, b, c, m`` that are not negative the number of steps is therefore at least

        (a P + b D + c K) / max over steps of (a p + b r + c k - m r (t(p, r, k) - T))

    with the sums ``P, D, K`` of the load (weak duality). For a given ``r``, which is whole, the denominator is linear in ``p``
    and ``k``, so the steps at their ends are enough, and the best multipliers are a linear program. It knows nothing of when
    requests come or of which kinds are together. A looser objective makes every step's value larger and the bound smaller:
    that it never rises then needs the best multipliers and not just good ones.
    """
    steps = _extreme_steps(settings)
    # In units of what fills a step.
    wanted = np.array(
        [
            totals.prompt / settings.max_num_batched_tokens,
            totals.decoded / settings.max_num_seqs,
            totals.context / settings.kv_tokens,
            0.0,
        ]
    )
    if not wanted.any():
        return 0.0
    multipliers = np.maximum(_best_multipliers(steps, wanted), 0.0)
    # Divided by the fullest step's value, rounding cannot make the bound too high.
    return float(wanted @ multipliers / (steps @ multipliers).max())


def _extreme_steps(settings: SimulatorSettings) -> Array:
    """Of each step with as few or as many tokens of prompts and of context as there can be: ``p, r, k`` and ``r (T - t)``."""
    costs, budget = settings.costs, settings.max_num_batched_tokens
    # Below the shortest step no answer meets the objective; what is asked then is asked of that step.
    tpot_s = max(settings.policy.slo_tpot_ms / 1e3, costs.step + costs.decode_row)
    rows = np.arange(min(settings.max_num_seqs, budget) + 1.0)
    found = []
    for prompt in (np.zeros(len(rows)), budget - rows):
        for context in (0.0, float(settings.kv_tokens)):
            lasts = costs.step + costs.prefill_token * prompt + costs.decode_row * rows + costs.context_token * context
            spare = rows * (1 - lasts / tpot_s) / settings.max_num_seqs
            filled = np.full(len(rows), context / settings.kv_tokens)
            found.append(np.stack([prompt / budget, rows / settings.max_num_seqs, filled, spare], axis=1))
    return np.concatenate(found)


def _best_multipliers(steps: Array, wanted: Array) -> Array:
    """The ``y``, not negative, with the largest ``wanted y`` of those with ``steps y`` at most 1: the simplex method.

    One row a step with its slack, one column for each unknown that is 0. Bland's rule, so that it ends.
    """
    count, unknowns = steps.shape
    table = np.column_stack([steps, np.ones(count)])
    gains = np.append(wanted, 0.0)
    columns, rows = list(range(unknowns)), list(range(unknowns, unknowns + count))
    for _ in range(_MOST_EXCHANGES):
        rising = [j for j in range(unknowns) if gains[j] > _ROUNDING * wanted.max()]
        if not rising:
            break
        enters = min(rising, key=columns.__getitem__)
        column = table[:, enters].copy()
        limits = np.full(count, np.inf)
        np.divide(table[:, -1], column, out=limits, where=column > _ROUNDING)
        least = limits.min()
        if not np.isfinite(least):
            break
        ties = np.flatnonzero(limits <= least + _ROUNDING * max(1.0, least))
        leaves = min(ties.tolist(), key=rows.__getitem__)
        pivot = table[leaves] / column[leaves]
        pivot[enters] = 1 / column[leaves]
        table -= np.outer(column, pivot)
        table[:, enters] = -column * pivot[enters]
        table[leaves] = pivot
        gain = gains[enters]
        gains -= gain * pivot
        gains[enters] = -gain * pivot[enters]
        columns[enters], rows[leaves] = rows[leaves], columns[enters]
    found = np.zeros(unknowns)
    for row, name in enumerate(rows):
        if name < unknowns:
            found[name] = table[row, -1]
    return found
