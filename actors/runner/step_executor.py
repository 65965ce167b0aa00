"""What an engine drives: something that computes planned steps. The model runner is one, a simulation another.

A step has three parts: its forward is launched, its sampling is launched, its outputs are saved. ``execute_model`` does them
in order; ``execute_model_overlap`` launches N before it saves N-1. Both are here, side by side, for every executor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from actors.scheduling.step_plan import StepPlan, StepResult


class LaunchedStep(Protocol):
    """When what happened to a step, in seconds of the executor's clock.

    Attributes:
        num_tokens: tokens of the step.
        staged_from, launched_at, enqueued_at: its buffers were written, then it was put into the device's queue.
        waited_from, waited_at, saved_at: the host waited for its end, then read its outputs.
        forward_end: the device had computed its forward; 0 where the host does not see that.
        device_start, device_end: the device computed it; valid once it was saved, and before that if the end is behind the start:
            then the step is over.
    """

    num_tokens: int
    staged_from: float
    launched_at: float
    enqueued_at: float
    waited_from: float
    waited_at: float
    saved_at: float
    forward_end: float

    @property
    def device_start(self) -> float: ...

    @property
    def device_end(self) -> float: ...


class StepExecutor(ABC):
    """Computes steps in the order in which they are launched; at most two are in flight.

    Attributes:
        device_name: where it computes, for people.
        last_saved: times of the step that was saved last, None before the first.
    """

    device_name: str
    last_saved: LaunchedStep | None

    # The two ways to run a step.

    def execute_model(self, plan: StepPlan) -> StepResult:
        """Run one step and save it: the plain twin of ``execute_model_overlap``."""
        self.launch_forward(plan)
        self.launch_sampling()
        return self.save_output()

    def execute_model_overlap(self, plan: StepPlan | None) -> StepResult | None:
        """Launch ``plan``, then save the step before it. None flushes: the last output does not wait for new work.

        Where a grammar needs the tokens of the step before, that one is saved while the device computes the forward of ``plan``,
        and the sampling is launched then.
        """
        has_previous = self.has_in_flight()
        if plan is None:
            return self.save_output() if has_previous else None
        self.launch_forward(plan)
        if has_previous and plan.needs.grammar:
            result = self.save_output()
            self.launch_sampling()
            return result
        self.launch_sampling()
        return self.save_output() if has_previous else None

    # The parts of a step.

    @abstractmethod
    def launch_forward(self, plan: StepPlan) -> None:
        """Stage ``plan`` and put its forward into the device's queue."""

    @abstractmethod
    def launch_sampling(self) -> None:
        """Put what follows the forward that was launched last into the queue: sampling, stops, the step's outputs."""

    @abstractmethod
    def save_output(self) -> StepResult:
        """Wait for the oldest step in flight and return its outputs; raises what went wrong on the device."""

    @abstractmethod
    def discard_in_flight(self) -> None:
        """Drop outputs and events of steps in flight (teardown, weight reload), once the device is done with them."""

    @abstractmethod
    def close(self) -> None:
        """Give the device's resources back; steps in flight are dropped."""

    # What an engine asks.

    @abstractmethod
    def has_in_flight(self) -> bool:
        """A step was launched and not saved."""

    @property
    @abstractmethod
    def step_in_flight(self) -> LaunchedStep | None:
        """The oldest step that was launched and not saved; None if there is none."""

    def forward_left(self) -> float | None:
        """The share of the forward of ``step_in_flight`` that is still to be computed; None where that cannot be seen."""
        return None

    @abstractmethod
    def check_idle(self) -> None:
        """Raise RuntimeError if, with nothing in flight, a slot still runs or a marker was not emitted."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Where it computes and what holds the device's memory."""

    @abstractmethod
    def align_clocks(self) -> None:
        """Let the next steps' device times lie on the host's clock; may wait for the device."""

    @abstractmethod
    def free_clocks(self) -> None:
        """Undo ``align_clocks``, for as long as nobody compares the two clocks."""
