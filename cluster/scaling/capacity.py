"""How long a step takes: ``a + b·prefill tokens + c·decode rows + d·context tokens``, learned online; and what follows for the
number of requests that an engine serves within its objectives. Pure values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

# Of an observation, so much is left when the next one has come.
_MEMORY = 0.995
# How many observations the prior is worth.
_PRIOR_WEIGHT = 8.0
# Each cost lies within this factor of the prior, after the speed of the whole device is taken out.
_SHAPE_BOUND = 4.0
_SPEED_BOUND = 1e4


class StepCosts(NamedTuple):
    """Seconds. The default is about an 8B model in 16 bits on one GPU of 48 GB with 0.8 TB/s.

    Attributes:
        step: of a step with nothing in it: the weights are read.
        prefill_token: for each token of a prompt.
        decode_row: for each sequence that gets a token.
        context_token: for each token that the decoding rows look back at.
    """

    step: float = 0.02
    prefill_token: float = 9e-5
    decode_row: float = 5e-5
    context_token: float = 1.9e-7


PRIOR_COSTS = StepCosts()


class Observation(NamedTuple):
    """A while of an engine without a pause: seconds a step, and what a step held on average."""

    step_s: float
    prefill_tokens: float
    decode_rows: float
    context_tokens: float


@dataclass(frozen=True)
class CapacityModel:
    """What was observed of one kind of engine, older observations ever less.

    Attributes:
        speed: log of the factor by which this device is slower than the prior.
        weight: of the observations.
        gram, moment: sums of the regression on step times relative to the observed ones; the upper triangle, row by row.
    """

    speed: float = 0.0
    weight: float = 0.0
    gram: tuple[float, ...] = (0.0,) * 10
    moment: tuple[float, ...] = (0.0,) * 4


def learned(model: CapacityModel, prior: StepCosts, seen: Observation) -> CapacityModel:
    """``model`` with one observation more; the same one if that makes no sense."""
    if not all(map(math.isfinite, seen)) or seen.step_s <= 0 or min(seen) < 0:
        return model
    parts = [cost * amount for cost, amount in zip(prior, (1.0, *seen[1:]))]
    expected = sum(parts)
    if not 1 / _SPEED_BOUND < seen.step_s / expected < _SPEED_BOUND:
        return model
    features = [part / seen.step_s for part in parts]
    weight = model.weight * _MEMORY + 1
    speed = model.speed + (math.log(seen.step_s / expected) - model.speed) / min(weight, 1 / (1 - _MEMORY))
    products = (features[i] * features[j] for i in range(4) for j in range(i, 4))
    gram = tuple(old * _MEMORY + new for old, new in zip(model.gram, products))
    moment = tuple(old * _MEMORY + new for old, new in zip(model.moment, features))
    return CapacityModel(speed, weight, gram, moment)


def step_costs(model: CapacityModel | None, prior: StepCosts) -> StepCosts:
    """Ridge regression around the prior times the device's speed; every cost stays positive and bounded."""
    if model is None or model.weight <= 0:
        return prior
    speed = math.exp(model.speed)
    ridge = _PRIOR_WEIGHT / (4 * speed * speed)
    rows = [[0.0] * 4 for _ in range(4)]
    values = iter(model.gram)
    for i in range(4):
        for j in range(i, 4):
            rows[i][j] = rows[j][i] = next(values)
    for i in range(4):
        rows[i][i] += ridge
    factors = _solved(rows, [moment + ridge * speed for moment in model.moment])
    bounded = (min(max(f, speed / _SHAPE_BOUND), speed * _SHAPE_BOUND) for f in factors)
    return StepCosts(*(cost * factor for cost, factor in zip(prior, bounded)))


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss without pivots: the matrix is positive definite."""
    size = len(right)
    for k in range(size):
        for i in range(k + 1, size):
            factor = matrix[i][k] / matrix[k][k]
            right[i] -= factor * right[k]
            for j in range(k, size):
                matrix[i][j] -= factor * matrix[k][j]
    solution = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(matrix[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (right[i] - rest) / matrix[i][i]
    return solution


class RequestShape(NamedTuple):
    """A request on average: tokens of the prompt that are computed, of the answer, and behind which a row decodes."""

    prompt_tokens: float
    output_tokens: float
    context_tokens: float


def request_work_s(costs: StepCosts, shape: RequestShape) -> float:
    """Seconds of an engine that a request takes, without its share of the steps themselves."""
    row = costs.decode_row + costs.context_token * shape.context_tokens
    return costs.prefill_token * shape.prompt_tokens + shape.output_tokens * row


def useful_share(costs: StepCosts, shape: RequestShape, tpot_s: float, max_rows: float = math.inf) -> float:
    """Share of an engine's time that goes into requests when its steps are as long as the objective allows, or its slots and
    memory are full. Positive, below 1."""
    # An objective that no batch can meet asks for small batches, not for an engine a request.
    longest = max(tpot_s, 1.25 * costs.step)
    row = request_work_s(costs, shape) / max(shape.output_tokens, 1.0)
    rows = max(1.0, min((longest - costs.step) / row, max_rows)) if row > 0 else 1.0
    return rows * row / (costs.step + rows * row) if row > 0 else 1.0


def most_rows(shape: RequestShape, max_num_seqs: float, kv_tokens: float, max_num_batched_tokens: float) -> float:
    """Rows that an engine holds on average by its slots, its memory, and the prompts that a step has room for; 0 is unknown."""
    limits = [max_num_seqs] if max_num_seqs > 0 else []
    if kv_tokens > 0:
        limits.append(kv_tokens / max(shape.context_tokens, 1.0))
    if max_num_batched_tokens > 0:
        limits.append(max_num_batched_tokens / (1 + shape.prompt_tokens / max(shape.output_tokens, 1.0)))
    return max(1.0, min(limits, default=math.inf))


def requests_per_s(costs: StepCosts, shape: RequestShape, tpot_s: float, max_rows: float = math.inf) -> float:
    """That one engine serves with the longest steps that are allowed."""
    work = request_work_s(costs, shape)
    return useful_share(costs, shape, tpot_s, max_rows) / work if work > 0 else math.inf
