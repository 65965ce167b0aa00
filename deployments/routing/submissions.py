"""The open sequences of one ingress: journal entries, and who of them no engine has. One key set, opened and closed together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

from cluster.journal import RequestJournal
from cluster.process.logs import log_fields
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.token_streams import TokenStream

logger = logging.getLogger("ray.serve")


class CountedByTenant:
    """A set of submissions, counted by tenant as they come and go: who asks for the counts need not look at each."""

    def __init__(self) -> None:
        self._members: set[Submission] = set()
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, submission: object) -> bool:
        return submission in self._members

    def __iter__(self) -> Iterator[Submission]:
        return iter(list(self._members))

    @property
    def by_tenant(self) -> dict[str, int]:
        """How many each tenant has that has any; a copy."""
        return self._counts.copy()  # in one go: this thread may not be its own

    def of(self, tenant: str) -> int:
        """How many that tenant has."""
        return self._counts.get(tenant, 0)

    def add(self, submission: Submission) -> None:
        """It is in this state now; safe to call again."""
        if submission not in self._members:
            self._members.add(submission)
            tenant = submission.entry.tenant
            self._counts[tenant] = self._counts.get(tenant, 0) + 1

    def discard(self, submission: Submission) -> None:
        """It is not, or not any more."""
        if submission in self._members:
            self._members.remove(submission)
            tenant = submission.entry.tenant
            left = self._counts[tenant] - 1
            if left:
                self._counts[tenant] = left
            else:
                del self._counts[tenant]


class Submissions:
    """Belongs to one event loop; others may only look.

    Attributes:
        journal: an entry each.
        unplaced: those that no engine is known to have.
        to_begin: those without a token.
    """

    def __init__(self, choices: EngineChoices) -> None:
        self.journal = RequestJournal()
        self.unplaced = CountedByTenant()
        self.to_begin = CountedByTenant()
        self._choices = choices
        self._by_id: dict[str, Submission] = {}
        # Of two or more none was alone there.
        self._on: dict[TokenStream, dict[Submission, None]] = {}
        self._isolation = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Submission]:
        return iter(list(self._by_id.values()))

    def of(self, request_id: str) -> Submission | None:
        """The open sequence of that id."""
        return self._by_id.get(request_id)

    def open(self, submission: Submission) -> None:
        """It is to be sent to an engine."""
        self.journal.open(submission.entry)
        self._by_id[submission.entry.request_id] = submission
        self.unplaced.add(submission)
        if not submission.entry.next_index:
            self.to_begin.add(submission)
        if submission.entry.attempt:
            # An answer that a client takes up.
            self._choices.left_engine(submission.entry.request_id)

    def close(self, submission: Submission) -> None:
        """It is over, or nobody cares any more."""
        self._leave_stream(submission)
        self._by_id.pop(submission.entry.request_id, None)
        self.journal.close(submission.entry.request_id)
        self.unplaced.discard(submission)
        self.to_begin.discard(submission)
        self._choices.close(submission.entry.request_id)

    def on(self, stream: TokenStream) -> list[Submission]:
        """Those that the engine behind ``stream`` is known to have."""
        return list(self._on.get(stream, ()))

    def sent_to(self, stream: TokenStream) -> list[Submission]:
        """Those, and the ones that it was sent and has not said that it has."""
        return [submission for submission in self if (submission.stream or submission.ahead) is stream]

    def place(self, submission: Submission, stream: TokenStream) -> None:
        """The engine behind ``stream`` has taken the sequence."""
        self._choices.trust(stream.engine_id)
        self._choices.took(submission.entry.request_id)
        self._leave_stream(submission)
        there = self._on.get(stream, {})
        if len(there) == 1:
            next(iter(there)).alone = False
        submission.stream, submission.alone = stream, not there
        if self.of(submission.entry.request_id) is submission:
            self._on.setdefault(stream, there)[submission] = None
        self.unplaced.discard(submission)
        if submission.lost_at is not None:
            entry, waited_s = submission.entry, time.monotonic() - submission.lost_at
            what = log_fields(request=entry.request_id, engine=stream.engine_id, attempt=entry.attempt)
            logger.info("event=taken %s seconds=%.2f", what, waited_s)

    def begun(self, submission: Submission) -> None:
        """Its first token came."""
        self.to_begin.discard(submission)

    def displace(self, submission: Submission) -> None:
        """The next attempt begins; no engine is known to have it."""
        self._leave_stream(submission)
        submission.stream = submission.ahead = submission.call = None
        self.unplaced.add(submission)
        submission.ended = asyncio.get_running_loop().create_future()

    def _leave_stream(self, submission: Submission) -> None:
        if submission.stream is not None and (there := self._on.get(submission.stream)) is not None:
            there.pop(submission, None)
            if not there:
                del self._on[submission.stream]

    async def isolate(self, submission: Submission) -> None:
        """Return once no other suspect is tried."""
        if not submission.isolated:
            await self._isolation.acquire()
            submission.isolated = True

    def leave_isolation(self, submission: Submission) -> None:
        """Another suspect may be tried, if this one kept it waiting."""
        if submission.isolated:
            submission.isolated = False
            self._isolation.release()

    def shares_with_isolated(self, submission: Submission) -> bool:
        """Whether its engine has another one, which is the suspect that is tried."""
        return any(
            other.isolated and other is not submission and other.stream is submission.stream
            for other in self._by_id.values()
        )
