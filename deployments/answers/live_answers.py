"""The streams of one ingress that clients may take up: of each answer one, the newest."""

from __future__ import annotations

from cluster.api_errors import ApiError
from deployments.answers.generation import Generation


class LiveAnswers:
    """Belongs to one event loop.

    A client takes its stream up because it has given the old one up, which this ingress may not have noticed. And who sends the
    same event's id many times has one answer for it.
    """

    def __init__(self) -> None:
        self._live: dict[str, Generation] = {}

    def __len__(self) -> int:
        return len(self._live)

    def begin(self, answer_id: str, generation: Generation) -> None:
        """``generation`` has started; another one of the same answer ends."""
        older = self._live.get(answer_id)
        self._live[answer_id] = generation
        generation.when_closed.append(lambda: self._end(answer_id, generation))
        if older is not None:
            why = "a later request has taken this answer up; one connection at a time gets it"
            older.give_up(ApiError(409, why, code="answer_taken_up"))

    def _end(self, answer_id: str, generation: Generation) -> None:
        if self._live.get(answer_id) is generation:
            del self._live[answer_id]
