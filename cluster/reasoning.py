"""How a model's reasoning begins and ends, as a request carries it from the ingress to an engine that bounds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """Around the reasoning of one answer.

    Attributes:
        begins: texts, any of which begins it where nothing but white space stands before.
        ends: texts, any of which ends it.
        end_token_ids: the tokens that write one of ``ends``.
        is_open: the answer begins in its reasoning.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    end_token_ids: tuple[int, ...]
    is_open: bool
