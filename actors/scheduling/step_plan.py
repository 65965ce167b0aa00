"""What the scheduler asks of the runner in one step, as plain data: a recorded list of plans can be replayed bit for bit."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.outputs import TokenLogprobs
from cluster.sampling_params import SamplingParams


class SlotInsert(NamedTuple):
    """A request enters a slot. ``token_ids`` are the tokens to (re)compute: the prompt and outputs of earlier runs."""

    slot: int
    request_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed_tokens: int
    params: SamplingParams


class PromptLogprobs(NamedTuple):
    """Positions ``start ..`` of a prompt whose next tokens ``targets`` are scored in this step."""

    slot: int
    start: int
    targets: tuple[int, ...]
    num_logprobs: int


@dataclass(slots=True)
class SamplingNeeds:
    """What a step's sampling does besides drawing a token for each sampling slot.

    Attributes:
        penalties: some sampling request has penalties, a bias, forbidden tokens, or a minimum length not yet reached.
        grammar: some sampling request has one, or a budget of reasoning: the tokens of the step before decide which it may
            take now.
        num_logprobs: most alternatives any sampling request wants, -1 for none.
        prompt_logprobs: prompt positions to score.
    """

    penalties: bool = False
    grammar: bool = False
    num_logprobs: int = -1
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)

    @property
    def changes_logits(self) -> bool:
        return self.penalties or self.grammar

    def covers(self, other: SamplingNeeds) -> bool:
        """Whether sampling that does all of this does all of ``other``: each field is at least as large."""
        return all(map(operator.ge, _every_need(self), _every_need(other)))


_every_need = operator.attrgetter(*SamplingNeeds.__dataclass_fields__)


@dataclass(slots=True)
class StepPlan:
    """One step.

    Attributes:
        step: number of the step, counted from 0.
        scheduled: slot to number of tokens; an upper bound, because the device may know of a stop that the host does not.
        inserts: requests that enter a slot before the step computes.
        block_updates: (slot, index in its block table, block id).
        preempted: slots that leave (preempted or aborted); the step carries their PREEMPTED marker.
        request_ids: slot to request, for every scheduled or preempted slot, as it was when the plan was made.
        sampling: slots that sample, as far as the host knows.
        needs: what their sampling does besides.
    """

    step: int
    scheduled: dict[int, int] = field(default_factory=dict)
    inserts: list[SlotInsert] = field(default_factory=list)
    block_updates: list[tuple[int, int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    request_ids: dict[int, str] = field(default_factory=dict)
    sampling: list[int] = field(default_factory=list)
    needs: SamplingNeeds = field(default_factory=SamplingNeeds)

    @property
    def num_tokens(self) -> int:
        return sum(self.scheduled.values())

    @property
    def has_prefill(self) -> bool:
        return self.num_tokens > len(self.scheduled)

    @property
    def is_empty(self) -> bool:
        return not self.scheduled and not self.preempted


class SlotOutput(NamedTuple):
    """What one step says about one slot. ``token`` is a token id, NO_TOKEN or PREEMPTED; ``finish_reason`` ends the request."""

    slot: int
    request_id: str
    token: int
    finish_reason: str | None = None
    matched_stop: int | None = None
    stopped_by_sequence: bool = False
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


class StepResult(NamedTuple):
    """What one saved step says of the slots of its plan, of each once.

    Attributes:
        plain_slots, plain_tokens: slots that go on, of which the token is all there is to say: nearly all of most steps.
        outputs: of all other slots.
    """

    step: int
    plain_slots: list[int]
    plain_tokens: list[int]
    outputs: list[SlotOutput]
