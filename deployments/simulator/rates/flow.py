"""Requests as classes that flow through engines that are alike: what a window of time does to rows and prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deployments.simulator.arrivals import Arrivals
from deployments.simulator.setup import SimulatorSettings


class Window(NamedTuple):
    """What has happened in one.

    Attributes:
        step_s: how long a step took.
        steps: that each answer went through.
        wait_s: until the prompts that are left behind would be computed.
        prompt_tokens, output_tokens: computed.
        num_ended: answers.
    """

    step_s: float
    steps: float
    wait_s: float
    prompt_tokens: float
    output_tokens: float
    num_ended: float


class Flow:
    """Of all engines together.

    Attributes:
        rows: answers that are decoded, by class.
        backlog: tokens of prompts that wait.
        mean_prompt: tokens.
    """

    def __init__(self, load: Arrivals, settings: SimulatorSettings) -> None:
        self._settings, self._output = settings, load.output
        self._context = load.prompt + load.output / 2
        self.rows = np.zeros(len(load.prompt))
        self.backlog = 0.0
        self.mean_prompt = float(load.prompt.mean())

    @property
    def num_rows(self) -> float:
        return float(self.rows.sum())

    @property
    def context_tokens(self) -> float:
        """That the rows look back at."""
        return float(self.rows @ self._context)

    @property
    def num_waiting(self) -> float:
        return self.backlog / self.mean_prompt

    def lose(self, share: float) -> None:
        """Of the rows: what they had is computed anew elsewhere."""
        self.backlog += self.context_tokens * share

    def pass_window(self, arrived: float, engines: float, dt: float) -> Window:
        """``dt`` seconds in which so many requests come and so many engines serve."""
        settings, costs = self._settings, self._settings.costs
        serving, num_rows = max(engines, 1e-9), self.num_rows
        each = num_rows / serving
        active = min(each, settings.max_num_seqs)
        per_row = costs.decode_row + costs.context_token * (self.context_tokens / num_rows if num_rows else 0.0)
        decode_s = costs.step + active * per_row
        budget = max(settings.max_num_batched_tokens - active, 1.0)
        able = serving * budget * dt / (decode_s + budget * costs.prefill_token)
        wanted = self.backlog + arrived * self.mean_prompt
        done = min(wanted, able)
        steps = max((dt - done / serving * costs.prefill_token) / decode_s, 1e-9) if engines > 1e-9 else 1e-9
        progressed = steps * active / max(each, active, 1e-9) if each else steps
        self.backlog = wanted - done
        ended = self._decode(done / self.mean_prompt, progressed)
        wait_s = self.backlog / able * dt if able else 1e9
        return Window(dt / steps, progressed, wait_s, done, num_rows * progressed, ended)

    def _decode(self, begun: float, steps: float) -> float:
        """Answers that ended; who begins within a window decodes for half of it."""
        before = self.num_rows
        left = self.rows * np.exp(-steps / self._output)
        inside = begun / len(self.rows) * np.exp(-0.5 * steps / self._output)
        self.rows = left + inside
        return before + begun - self.num_rows
