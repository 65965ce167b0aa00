"""What a scaling policy would pay if it knew more: seconds instead of a simulation.

    python docs/lab/value_of_knowledge.py TRACE [TRACE ...]

The work that comes is replayed second by second against whole engines that take seconds to start, and a curve says how many
requests miss an objective at a load per engine (docs/lab/autoscaling.md). For each way of knowing the demand the head room is the
smallest constant one with which 0.85 % miss. It ranks rules as the simulator does, within a few hundredths.
"""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.scaling import policy
from deployments.simulator.arrivals import Array
from deployments.simulator.oracle import useful_share
from deployments.simulator.setup import SimulatorSettings
from deployments.simulator.study import Study

# Share of misses at a load per engine, of long and of short answers: of fleets of a fixed size, beyond 0.92 of the policy.
_LOADS = (0.7, 0.8, 0.84, 0.88, 0.92, 1.0, 1.1, 1.3, 2.0)
_MISSES = (
    (5e-5, 3e-4, 2.1e-3, 5e-3, 0.013, 0.06, 0.25, 0.6, 1.0),
    (1e-3, 3.4e-3, 5.3e-3, 0.0107, 0.02, 0.06, 0.2, 0.5, 1.0),
)
_MAY_MISS = 0.0085
_START_S = 13  # with the tick until a decision takes effect


class Load:
    """Of a recording, second by second.

    Attributes:
        arrivals: requests.
        true, level: engines wanted by the work that comes, a mean of six seconds; and as the policy sees it.
    """

    def __init__(self, trace: Path, settings: SimulatorSettings) -> None:
        study = Study(trace, settings, 12.0)
        load, costs = study.load, settings.costs
        self.oracle_s, self.initial = study.bound.engine_hours * 3600, study.initial
        self.is_short = float(load.output.mean()) < 50
        ticks = int(load.duration_s * 2) + 1
        tick = np.minimum((load.at * 2).astype(int), ticks - 1)
        decode = (load.output - 1) * (costs.decode_row + costs.context_token * (load.prompt + load.output / 2))
        count, prompt, later = (np.bincount(tick, w, ticks).astype(float) for w in (None, load.prompt, decode))
        share = useful_share(load, settings)
        true = np.convolve((prompt * costs.prefill_token + later) / share * 2, np.ones(12) / 12, "same")
        lasts = int(float(load.output.mean()) * 0.085 * 2)
        self.level = self._level(count, prompt * costs.prefill_token, later, lasts) / share
        seconds = len(self.level)
        self.true = true[::2][:seconds]
        self.arrivals = count[: 2 * seconds].reshape(-1, 2).sum(axis=1)

    def _level(self, count: Array, prompt_s: Array, decode_s: Array, lasts: int) -> Array:
        """Lengths of answers are known when they end, ``lasts`` ticks after they came, and remembered for a minute."""
        keep, kept, found = math.exp(-0.1), math.exp(-0.5 / 60), []
        rate, prompts = float(count[:20].sum()) / 10, float(prompt_s[:20].sum()) / 10
        level, sent = rate, prompts
        ended, decoded = 100.0, 100.0 * float(decode_s[:240].sum() / count[:240].sum())
        for tick in range(len(count)):
            rate += (1 - keep) * (count[tick] * 2 - rate)
            prompts += (1 - keep) * (prompt_s[tick] * 2 - prompts)
            before = tick - lasts
            ended = ended * kept + (count[before] if before >= 0 else 0.0)
            decoded = decoded * kept + (decode_s[before] if before >= 0 else 0.0)
            if tick % 2:
                known = level
                level = policy._level(level, rate, known, 1.0, 1.0) or 0.0
                sent = policy._level(sent, prompts, known, 1.0, math.sqrt(2.0)) or 0.0
                found.append(sent + level * decoded / ended)
        return np.array(found)

    def cost(self, demand: Array, hold_s: int, margin: float) -> float:
        """Over the oracle's engine-hours, of a policy that believes ``demand``."""
        low, high = -0.05, 0.7
        for _ in range(9):
            middle = (low + high) / 2
            low, high = (middle, high) if self._run(demand, hold_s, margin, middle)[1] > _MAY_MISS else (low, middle)
        return self._run(demand, hold_s, margin, high)[0] / self.oracle_s

    def _run(self, demand: Array, hold_s: int, margin: float, head_room: float) -> tuple[float, float]:
        """(engine-seconds, share of misses)."""
        rng, drain_s = random.Random(0), 0.5 if self.is_short else 4.0
        ready, starting, leaving, paid = self.initial, list[float](), list[float](), 0.0
        held: deque[tuple[int, float]] = deque()
        per_engine = np.empty(len(demand))
        for second, wanted in enumerate(demand.tolist()):
            ready += sum(at <= second for at in starting)
            starting = [at for at in starting if at > second]
            leaving = [at for at in leaving if at > second]
            per_engine[second] = self.true[second] / max(ready, 0.01)
            paid += ready + len(starting) + len(leaving)
            while held and held[-1][1] <= wanted:
                held.pop()
            held.append((second, wanted))
            while held[0][0] < second - hold_s:
                held.popleft()
            need = math.ceil(wanted * (1 + head_room) - 1e-3)
            kept = max(1, math.ceil((held[0][1] + margin) * (1 + head_room) - 1e-3))
            there = ready + len(starting)
            if need > there:
                starting += [second + 0.5 + rng.choice((8.0, 10.0, 12.5, 14.0, 17.0)) for _ in range(need - there)]
            elif kept < there and second > hold_s:
                starting.sort()
                stopped = min(there - kept, len(starting))
                del starting[len(starting) - stopped :]
                leaving += [second + drain_s] * (there - kept - stopped)
                ready -= there - kept - stopped
        missed = np.exp(np.interp(per_engine, _LOADS, np.log(_MISSES[self.is_short])))
        return paid, float(missed @ self.arrivals / self.arrivals.sum())


def _smooth(values: Array, seconds: int) -> Array:
    before = seconds // 2
    return np.convolve(np.pad(values, (before, seconds - 1 - before), "edge"), np.ones(seconds) / seconds, "valid")


def _ahead(values: Array, seconds: int) -> Array:
    return np.concatenate([values[seconds:], np.full(seconds, values[-1])])


def _rising(values: Array) -> Array:
    """Half of the rise of the last 20 s goes on while an engine starts."""
    rise = np.zeros(len(values))
    rise[20:] = values[20:] - values[:-20]
    return values + np.maximum(0.0, rise) / 20 * _START_S / 2


_WAYS = {
    "the policy's levels, two starts": lambda load: load.cost(load.level, 30, 0.0),
    "one start": lambda load: load.cost(load.level, 15, 0.0),
    "one start and half an engine (the policy)": lambda load: load.cost(load.level, 15, 0.5),
    "that, and half of a rise goes on": lambda load: load.cost(_rising(load.level), 15, 0.5),
    "the demand of now, without noise": lambda load: load.cost(_smooth(load.true, 20), 15, 0.5),
    "the demand when an engine would serve": lambda load: load.cost(_ahead(_smooth(load.true, 20), _START_S), 15, 0.5),
}


def main(traces: list[Path]) -> None:
    loads = [Load(trace, SimulatorSettings()) for trace in traces]
    for name, way in _WAYS.items():
        costs = [way(load) for load in loads]
        print(f"{name:42}", *(f"{cost:.3f}" for cost in costs), f"mean {np.mean(costs):.3f}", flush=True)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
