"""A chat that grows, and forgets its oldest turns when the model's context cannot hold it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.client.api_types import Answer
from cluster.errors import BiremeError

Messages = list[dict[str, str]]
CONTEXT_EXCEEDED = "context_length_exceeded"
# Of the model's context an answer may take this much, unless a person says otherwise; a conversation that left less would
# have its answers cut short.
_ANSWER_SHARE = 4


def answer_room(max_model_len: int | None) -> int | None:
    """Longest answer in tokens for a model of that context; None if it is not known."""
    return None if max_model_len is None else max(1, max_model_len // _ANSWER_SHARE)


class Conversation:
    """Turns of question and answer behind an optional system message.

    Attributes:
        num_forgotten: turns that were left out for want of room.
    """

    def __init__(self, system: str | None = None) -> None:
        self._turns: list[Messages] = []
        self.set_system(system)

    def set_system(self, system: str | None) -> None:
        """Start over with another system message, or none."""
        self._system: Messages = [{"role": "system", "content": system}] if system else []
        self.clear()

    def clear(self) -> None:
        """Start over; the system message stays."""
        self._turns.clear()
        self.num_forgotten = 0

    def ask(
        self, question: str, send: Callable[[Messages], Iterator[Answer]], on_forget: Callable[[], None]
    ) -> Iterator[Answer]:
        """Chunks of the answer; once it is complete, question and answer are part of the conversation.

        ``on_forget`` is called when the first turn has to be left out.

        Raises:
            BiremeError: the server refused, and leaving out turns cannot help.
        """
        asked = {"role": "user", "content": question}
        pieces: list[str] = []
        while True:
            history = [message for turn in self._turns for message in turn]
            try:
                for chunk in send([*self._system, *history, asked]):
                    pieces.append(chunk.text)
                    yield chunk
                break
            except BiremeError as error:
                if error.code != CONTEXT_EXCEEDED or not self._turns or pieces:
                    raise
            if not self.num_forgotten:
                on_forget()
            self._turns.pop(0)
            self.num_forgotten += 1
        self._turns.append([asked, {"role": "assistant", "content": "".join(pieces)}])
