"""How much the engines of one ingress take, as they announced last, and who waits here until there is room."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.outputs import EngineLoad
from cluster.scaling.hold import HoldShare
from deployments.routing.admission import num_booked_for, places_of_a_key, refusal, share_refusal
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStream, TokenStreams
from deployments.routing.waiting.place_line import PlaceLine


class EngineRooms:
    """The rooms of the engines that may be chosen.

    Args:
        idle_room: what an engine takes that has nothing to do; one that has yet to speak counts for such.
        max_queue_share: of the engines' queues, what the sequences of one tenant may hold.
        max_engines: so many there may be at least. While there is none, as many requests wait as they take, or as those took that
            were there. May be changed.

    Attributes:
        hold_share: this ingress's part of them. May be changed.
    """

    def __init__(
        self,
        choices: EngineChoices,
        streams: TokenStreams,
        submissions: Submissions,
        idle_room: EngineLoad,
        max_queue_share: float,
        max_engines: int,
    ) -> None:
        self._choices = choices
        self._streams = streams
        self._submissions = submissions
        self._line = PlaceLine()
        self._idle_room = idle_room
        self._max_queue_share = max_queue_share
        self.max_engines = max_engines
        self.hold_share = HoldShare()

    @property
    def most_held(self) -> int:
        """This ingress's part of the sequences that all of them hold while there is no engine."""
        return self.hold_share.part(self._idle_room.free * self._most_engines)

    def check(self, num_sequences: int, tenant: str = "") -> None:
        """Raise ApiError 429 if the engines do not take so many now, or not of this tenant."""
        streams = self._usable_streams()
        ends_per_s = sum(stream.ends.per_s for stream in streams if stream is not None)
        rooms, idle_room, elsewhere = self._rooms(streams), self._idle_room, 0
        if not rooms:
            idle_room, elsewhere = self._held_room(num_sequences)
            rooms = [idle_room]
        num_booked, refused = len(self._submissions.unplaced) + elsewhere, None
        if tenant:
            unplaced, to_begin = self._submissions.unplaced, self._submissions.to_begin
            num_slots = len(rooms) * (idle_room.free - idle_room.max_queued)
            free_slots = max(0, num_slots - (len(self._submissions) - len(to_begin)))
            refused = share_refusal(to_begin.of(tenant), num_sequences, rooms, free_slots, self._max_queue_share)
            if refused is None and num_sequences == 1 and streams:
                # The engine knows exactly. What is announced counts what other keys have sent beyond their shares.
                return
            if max(len(unplaced), len(to_begin)) > places_of_a_key(rooms, self._max_queue_share):
                on_way = unplaced.by_tenant
                waiting = {key: max(0, to_begin.of(key) - count) for key, count in on_way.items()}
                num_booked = num_booked_for(tenant, on_way, waiting, rooms, self._max_queue_share) + elsewhere
        # Without an engine there is no slot: all of them wait.
        limits = rooms if streams else [idle_room._replace(max_queued=idle_room.free)]
        refused = refused or refusal(limits, num_booked, num_sequences, ends_per_s)
        if refused is not None:
            raise refused

    def is_held(self, submission: Submission) -> bool:
        """Whether it waits, or waited, for a first engine: none may be chosen, as ``check`` sees it, or there was none since it
        came. Then the bound of what is held has let it in, and no queue that is full afterwards refuses it."""
        return not self._usable_streams() or self._choices.was_without_since(submission.submitted_at)

    def num_too_few(self) -> int:
        """How many engines there are, where requests wait that another one would take and there may be one; else 0."""
        num_engines = len(self._choices.engines)
        if not 0 < num_engines < self.max_engines:
            return 0
        num_slots = num_engines * (self._idle_room.free - self._idle_room.max_queued)
        loads = (stream.load for stream in self._streams if stream.load is not None)
        is_full = len(self._submissions) > num_slots or any(load.num_waiting for load in loads)
        return num_engines if is_full else 0

    async def wait(self) -> None:
        """Return when a sequence that was refused may try again: at once if there is room for all that are on their way."""
        if self._num_free() < 0:
            await self._line.wait()

    def changed(self) -> None:
        """An engine has announced its room: those who wait may go as far as there is some."""
        if len(self._line):
            self._line.go(self._num_free())

    def _usable_streams(self) -> list[TokenStream | None]:
        """One an engine that may be chosen; None if there is no stream yet."""
        found = []
        for engine_id in self._choices.engines:
            stream = self._streams.of(engine_id)
            if not (self._choices.is_avoided(engine_id) if stream is None else stream.leaves or stream.silent):
                found.append(stream)
        return found

    def _held_room(self, num_sequences: int) -> tuple[EngineLoad, int]:
        """This ingress's part of what all engines take that are not there yet, and how much of it others have taken.

        A request that is larger than that part is taken, as everywhere, where nobody else waits: at no ingress.
        """
        share, own = self.hold_share, self.most_held
        total, queue = (places * self._most_engines for places in (self._idle_room.free, self._idle_room.max_queued))
        elsewhere = share.excess(total, own) if num_sequences <= own else share.held_elsewhere
        return EngineLoad(own, share.part(queue)), elsewhere

    @property
    def _most_engines(self) -> int:
        return max(self.max_engines, self._choices.most_engines)

    def _rooms(self, streams: Sequence[TokenStream | None]) -> list[EngineLoad]:
        return [self._idle_room if stream is None else stream.load or self._idle_room for stream in streams]

    def _num_free(self) -> int:
        """Room for those who wait in line; below 0 if those on their way are more than it."""
        free = sum(room.free for room in self._rooms(self._usable_streams()))
        return free - (len(self._submissions.unplaced) - len(self._line))
