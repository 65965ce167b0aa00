"""Ids of a stream's events: where its answer was by then, signed, so that only what a server gave out is taken up."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from binascii import b2a_base64
from typing import NamedTuple

from cluster.api_errors import bad_request, shown

LAST_EVENT_ID_HEADER = "Last-Event-ID"
# Clients take their streams up within seconds. Who keeps ids must not gather ever more answers that are taken past full queues.
LIFETIME_S = 3600
# Multiples of three: their text needs no padding, and no other text means the same.
CONTENT_BYTES = 12
_SIGNATURE_BYTES = 18

_EVENT_ID = re.compile(
    r"([a-z]{1,16}-[0-9a-f]{32}):([0-9]{1,12}):([0-9]{1,12}):([0-9]{1,12}):([0-9]{1,12}):([\w+/]{16}):[\w+/]{24}",
    re.ASCII,
)


class ResumePoint(NamedTuple):
    """An event of an answer.

    Attributes:
        answer_id: what the answer is called.
        created: when it began, in seconds since the epoch.
        num_tokens: how many all choices had by then.
        num_cached_tokens: how many of its prompts were found in the prefix cache.
        age_s: how long after the beginning the event was built.
        content: what was asked, and had been answered by then (``AnswerDigest``).
    """

    answer_id: str
    created: int
    num_tokens: int
    num_cached_tokens: int
    age_s: int
    content: str


class EventIds:
    """Writes and reads ids that nobody can make up who lacks ``key``."""

    def __init__(self, key: bytes) -> None:
        # A copy costs less than a beginning.
        self._unsigned = hashlib.blake2s(digest_size=_SIGNATURE_BYTES, key=key, person=b"event id")

    def sign(self, point: ResumePoint) -> str:
        """The id of an event: its fields, and a signature of them, joined by colons."""
        answer_id, created, num_tokens, num_cached, age_s, content = point
        text = f"{answer_id}:{created}:{num_tokens}:{num_cached}:{age_s}:{content}"
        return f"{text}:{self._signature(text)}"

    def read(self, event_id: str) -> ResumePoint:
        """The event that ``event_id`` was given to.

        Raises:
            ApiError: 400, it was given to none, or too long ago.
        """
        match = _EVENT_ID.fullmatch(event_id)
        text, _, signature = event_id.rpartition(":")
        if match is None or not hmac.compare_digest(signature, self._signature(text)):
            raise bad_request(
                f"the header {LAST_EVENT_ID_HEADER} is no event id of this server's for this API key: {shown(event_id)}; "
                "send the id of the last event as it came, or begin anew without the header and the field resume",
                LAST_EVENT_ID_HEADER,
                "invalid_event_id",
            )
        answer_id, created, num_tokens, num_cached, age_s, content = match.groups()
        point = ResumePoint(answer_id, int(created), int(num_tokens), int(num_cached), int(age_s), content)
        if time.time() > point.created + point.age_s + LIFETIME_S:
            raise bad_request(
                f"the event in the header {LAST_EVENT_ID_HEADER} is older than {LIFETIME_S} s; begin anew without the header "
                "and the field resume: the same seed gives the same answer",
                LAST_EVENT_ID_HEADER,
                "event_id_expired",
            )
        return point

    def _signature(self, text: str) -> str:
        signed = self._unsigned.copy()
        # What has other characters is no id.
        signed.update(text.encode("ascii", "replace"))
        return b2a_base64(signed.digest(), newline=False).decode()
