"""How few steps can compute a load within the objective for the pace of answers: a bound that holds for every schedule.

An engine's time is ``costs.step`` for each step plus the work in it, and the work is given. A step has ``p`` tokens of prompts,
``r`` rows and ``k`` tokens of context, within slots, budget and memory, and takes ``t(p, r, k)``. Each answer that meets its
objective has steps of at most ``T`` on average; summed over answers, ``r (t - T)`` over all steps is at most 0. For any
multipliers ``a, b, c, m`` that are not negative the number of steps is therefore at least

    (a P + b D + c K) / max over steps of (a p + b r + c k - m r (t(p, r, k) - T))

with the sums ``P, D, K`` of the load (weak duality). The denominator is exact: for a given ``r`` it is linear in ``p`` and
``k``, and at their ends a parabola in ``r``. It knows nothing of when requests come or of which kinds are together. The search
for good multipliers may miss the best ones, which makes the bound lower and never wrong."""

from __future__ import annotations

from typing import NamedTuple

from deployments.simulator.setup import SimulatorSettings

_ROUNDS = 60


class Totals(NamedTuple):
    """Of a load, or of a part: tokens of prompts; tokens that rows decode; tokens of context that these look back at."""

    prompt: float
    decoded: float
    context: float


def fewest_steps(totals: Totals, settings: SimulatorSettings) -> float:
    """Steps, not whole ones, without which ``totals`` cannot be computed."""
    budget, slots = settings.max_num_batched_tokens, settings.max_num_seqs
    most = totals.prompt / budget, totals.decoded / slots, totals.context / settings.kv_tokens
    # In units of what fills a step, so that a search by factors begins near its end.
    best = [1.0, 1.0, 1.0, 1.0]
    found = _bound(best, totals, settings)
    stride = 4.0
    for _ in range(_ROUNDS):
        has_risen = False
        for i in range(4):
            for factor in (stride, 1 / stride, 0.0):
                tried = list(best)
                tried[i] = best[i] * factor if best[i] else stride - 1
                value = _bound(tried, totals, settings)
                if value > found:
                    best, found, has_risen = tried, value, True
        if not has_risen:
            stride = stride**0.5
    return max(found, *most)


def _bound(multipliers: list[float], totals: Totals, settings: SimulatorSettings) -> float:
    budget, slots = settings.max_num_batched_tokens, settings.max_num_seqs
    a, b, c = multipliers[0] / budget, multipliers[1] / slots, multipliers[2] / settings.kv_tokens
    tpot_s = settings.policy.slo_tpot_ms / 1e3
    m = multipliers[3] / slots / tpot_s
    fullest = _fullest(a, b, c, m, settings)
    return (a * totals.prompt + b * totals.decoded + c * totals.context) / fullest if fullest > 0 else 0.0


def _fullest(a: float, b: float, c: float, m: float, settings: SimulatorSettings) -> float:
    """The largest ``a p + b r + c k - m r (t - T)`` of any step."""
    costs, budget, slots = (
        settings.costs,
        settings.max_num_batched_tokens,
        min(settings.max_num_seqs, settings.max_num_batched_tokens),
    )
    tpot_s = settings.policy.slo_tpot_ms / 1e3
    largest = 0.0
    for fills_budget in (0, 1):
        for k in (0.0, float(settings.kv_tokens)):
            # p = fills_budget (budget - r); then the value is constant + linear r - square r².
            constant = a * budget * fills_budget + c * k
            prompt_s = costs.prefill_token * budget * fills_budget
            linear = b - a * fills_budget - m * (costs.step + prompt_s + costs.context_token * k - tpot_s)
            square = m * (costs.decode_row - costs.prefill_token * fills_budget)
            rows = [0.0, float(slots)]
            if square > 0:
                rows.append(min(max(linear / (2 * square), 0.0), float(slots)))
            largest = max(largest, *(constant + linear * r - square * r * r for r in rows))
    return largest
