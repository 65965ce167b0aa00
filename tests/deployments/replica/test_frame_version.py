"""The version of frames follows from what travels in them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from typing import NamedTuple

from deployments.replica.frame_version import frame_version
from deployments.replica.token_messages import VERSION


@dataclass
class Inner:
    text: str
    others: list[Inner] = field(default_factory=list)


class Outer(NamedTuple):
    number: int
    inner: Inner | None = None


def test_every_change_of_what_travels_is_another_version():
    changed = [
        [("text", str), ("others", "list[int]", field(default_factory=list))],
        [("text", bytes)],
        [("text", str, "x")],
        [("text", str), ("more", str)],
        [("more", str), ("text", str)],
        [("texts", str)],
    ]
    nested = [NamedTuple("Outer", [("number", int), ("inner", make_dataclass("Inner", fields))]) for fields in changed]
    kinds = [Outer, Inner, list[Outer], tuple[Outer, int], tuple[int, Outer], *nested]
    assert len({frame_version(kind) for kind in kinds}) == len(kinds)
    assert frame_version(Outer, Inner) != frame_version(Inner, Outer)


def test_every_process_of_one_code_has_the_same():
    code = "from deployments.replica.token_messages import VERSION; print(VERSION)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == VERSION
