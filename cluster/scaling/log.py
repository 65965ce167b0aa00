"""Records of decisions, one JSON object a line, that can be decided again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from cluster.scaling import capacity, fleet, inputs, policy
from cluster.scaling.fleet import Decision, FleetInputs, PolicySettings, PolicyState
from cluster.scaling.policy import decide

Decide = Callable[[FleetInputs, PolicyState, PolicySettings], Decision]

# Of many differences the first ones tell what is the matter.
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Record:
    """A decision, with all that it was made of.

    Attributes:
        sequence: number of the decision; not every one is recorded.
        at: seconds since 1970.
        policy: ``source_hash`` of the policy.
        settings: in force, its bounds included.
        inputs, state: what was known and remembered.
        target, reason: what was decided; with an error, what was held.
        next_state: what was remembered then; None with an error.
        error: where the policy raised: of what type, and what it said.
    """

    sequence: int
    at: float
    policy: str
    settings: PolicySettings
    inputs: FleetInputs
    state: PolicyState
    target: int
    reason: str
    next_state: PolicyState | None
    error: str = ""

    def line(self) -> bytes:
        return msgspec.json.encode(self)


@dataclass(frozen=True)
class Difference:
    """What a record says and what is decided now."""

    sequence: int
    field: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Replay:
    """What came of deciding again.

    Attributes:
        num_replayed: records that were decided again.
        num_unreadable: lines that are no record, the last one of a file that is being written included.
        policies: hashes of the policies that wrote them.
        num_different: records of which something differs.
        differences: of the first of these.
    """

    num_replayed: int
    num_unreadable: int
    policies: list[str]
    num_different: int
    differences: list[Difference]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "policy": source_hash()}

    def lines(self) -> Iterator[str]:
        """For a person."""
        others = [name for name in self.policies if name != source_hash()]
        yield f"{self.num_replayed} decisions made again, {self.num_different} of them otherwise"
        if self.num_unreadable:
            yield f"{self.num_unreadable} lines are no records"
        if others:
            yield f"recorded with another policy: {', '.join(others)}; this one is {source_hash()}"
        for found in self.differences:
            yield f"number {found.sequence}: {found.field} was {found.recorded}, now {found.now}"


def replay(lines: Iterable[bytes], decide: Decide = decide) -> Replay:
    """Decide again what the lines hold. Records of a policy that failed are compared by what it raises now."""
    decoder = msgspec.json.Decoder(Record)
    num_replayed = num_unreadable = num_different = 0
    policies: dict[str, None] = {}
    differences: list[Difference] = []
    for line in lines:
        try:
            record = decoder.decode(line)
        except msgspec.DecodeError:
            num_unreadable += bool(line.strip())
            continue
        num_replayed += 1
        policies[record.policy] = None
        found = list(_differences(record, decide))
        num_different += bool(found)
        differences += found[: _MAX_SHOWN - len(differences)]
    return Replay(num_replayed, num_unreadable, list(policies), num_different, differences)


def _differences(record: Record, decide: Decide) -> Iterator[Difference]:
    try:
        found = decide(record.inputs, record.state, record.settings)
        now: dict[str, Any] = {"target": found.target, "reason": found.reason, "next_state": found.state, "error": ""}
    except Exception as error:
        now = {"target": record.target, "reason": record.reason, "next_state": None, "error": described(error)}
    for name, value in now.items():
        recorded = getattr(record, name)
        if recorded == value:
            continue
        if isinstance(recorded, PolicyState) and isinstance(value, PolicyState):
            before, after = asdict(recorded), asdict(value)
            (name, recorded, value) = next(
                (f"{name}.{part}", before[part], after[part]) for part in before if before[part] != after[part]
            )
        yield Difference(record.sequence, name, str(recorded), str(value))


def described(error: Exception) -> str:
    """Its type and what it says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Of the source of all that decides."""
    digest = hashlib.sha256()
    for module in (inputs, capacity, fleet, policy):
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:16]
