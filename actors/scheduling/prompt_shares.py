"""How a step's prompt tokens are divided among the prompts that have been admitted, so that a short one does not wait for a
whole long one. Plain functions of what is left of each prompt and for how many steps it has been here: the same prompts always
get the same shares.

Two parts of a step: a quarter in equal shares for everybody, so that each prompt advances in each step; the rest in order, the
most urgent first and among these by wait and length. Of two prompts, one of them ten times as long, the long one goes first once
it has waited a hundred times as long. Where more comes than can be computed the waits of all grow, and a long one has its equal
share alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Prompt(NamedTuple):
    """What is left to compute of a prompt. Smaller is shorter, or more urgent.

    Attributes:
        priority: the request's; larger gives way.
        to_begin: whether its client has seen nothing yet; an answer in the middle goes first.
        remaining: tokens, at least one.
    """

    priority: int
    to_begin: bool
    remaining: int


def prompt_shares(prompts: Sequence[Prompt], steps: Sequence[int], budget: int) -> list[int]:
    """How many tokens each of ``prompts`` gets of ``budget``; among equals the earlier one goes first.

    With a budget of at least one token a prompt, everybody gets one or more. Nothing is left over while anybody needs it.

    Args:
        steps: of each prompt, for how many it has been here, this one among them; of an answer that was preempted since it came.
    """
    shares = [0] * len(prompts)
    left = budget

    def raise_to(index: int, share: int) -> None:
        nonlocal left
        count = min(share, prompts[index].remaining, shares[index] + left) - shares[index]
        if count > 0:
            shares[index] += count
            left -= count

    order = sorted(range(len(prompts)), key=lambda index: (*_order(prompts[index], steps[index]), index))
    for index in order:
        raise_to(index, max(1, budget // (4 * len(prompts))))
    for index in order:
        raise_to(index, prompts[index].remaining)
    return shares


def has_tokens_for(newcomer: Prompt, prompts: Iterable[Prompt], budget: int) -> bool:
    """Whether the prompts that are as urgent as ``newcomer`` and no longer need less than ``budget``.

    How long anybody has waited does not count here: fleets carry less where a short prompt is held back until it has waited as
    long for its length as those that are being computed.
    """
    return sum(prompt.remaining for prompt in prompts if prompt <= newcomer) < budget


def _order(prompt: Prompt, steps: int) -> tuple[int, bool, float, int]:
    """By the wait over what is left, as the response ratio has it (Brinch Hansen, Operating System Principles, 1973), and over
    that once more: long prompts do as well as by the ratio alone, and the median is hardly later than with the shortest first.
    A wait is counted in steps, so that the same requests get the same plans however fast the machine is."""
    return prompt.priority, prompt.to_begin, -steps / prompt.remaining**2, prompt.remaining
