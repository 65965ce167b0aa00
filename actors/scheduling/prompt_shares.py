"""How a step's prompt tokens are divided among the prompts that have been admitted, so that a short one does not wait for a
whole long one. Plain functions of what is left of each prompt: the same prompts always get the same shares.

Three parts of a step: a quarter in equal shares for everybody, so that each prompt advances in each step; a quarter for the
longest, which the shorter ones that keep coming would else hold up for ever; the rest in order, the most urgent first and
among these the shortest, whose tokens nobody else waits for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Prompt(NamedTuple):
    """What is left to compute of a prompt. Smaller goes first.

    Attributes:
        priority: the request's; larger gives way.
        to_begin: whether its client has seen nothing yet; an answer in the middle goes first.
        remaining: tokens, at least one.
    """

    priority: int
    to_begin: bool
    remaining: int


def prompt_shares(prompts: Sequence[Prompt], budget: int) -> list[int]:
    """How many tokens each of ``prompts`` gets of ``budget``; among equals the earlier one goes first.

    With a budget of at least one token a prompt, everybody gets one or more, and the longest a quarter of the budget (or what
    it needs, or what one token for each of the others leaves). Nothing is left over while anybody needs it.
    """
    shares = [0] * len(prompts)
    left = budget
    order = sorted(range(len(prompts)), key=lambda index: (prompts[index], index))

    def raise_to(index: int, share: int) -> None:
        nonlocal left
        count = min(share, prompts[index].remaining, shares[index] + left) - shares[index]
        if count > 0:
            shares[index] += count
            left -= count

    for index in order:
        raise_to(index, max(1, budget // (4 * len(prompts))))
    if order:
        raise_to(max(order, key=lambda index: (prompts[index].remaining, prompts[index], index)), -(-budget // 4))
    for index in order:
        raise_to(index, prompts[index].remaining)
    return shares


def has_tokens_for(newcomer: Prompt, prompts: Iterable[Prompt], budget: int) -> bool:
    """Whether ``newcomer`` would get some of the rest: those that go before it need less than ``budget``."""
    return sum(prompt.remaining for prompt in prompts if prompt <= newcomer) < budget
