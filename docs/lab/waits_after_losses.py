"""``python docs/lab/waits_after_losses.py SESSION``: what requests waited for whose engine was lost, from the ingresses' logs in
a folder of Ray's (``/tmp/ray/session_...``): for another engine that takes them, and then for a slot there."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path

_LINE = re.compile(r"\w+ (\S+ \S+) .*event=(request_attempts|request_handovers|taken|recovered) request=(\S+)")


def main() -> None:
    """Print medians and the longest."""
    events: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for log in Path(sys.argv[1]).glob("logs/serve/*OpenAiIngress*"):
        for found in filter(None, map(_LINE.match, log.read_text(errors="replace").splitlines())):
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            events[found[3]].append((at, found[2]))
    to_be_taken, to_have_a_token = [], []
    for said in events.values():
        lost_at = taken_at = None
        for at, what in sorted(said):
            if what == "recovered" and taken_at is not None:
                to_have_a_token.append(at - taken_at)
                lost_at = taken_at = None
            elif what == "taken":
                to_be_taken += [] if taken_at or lost_at is None else [at - lost_at]
                taken_at = at
            elif what != "recovered":
                lost_at, taken_at = at, None
    for what, seconds in (("taken by another engine", to_be_taken), ("from there to a token", to_have_a_token)):
        if seconds:
            seconds.sort()
            print(
                f"{what}: {len(seconds)} times, median {seconds[len(seconds) // 2]:.2f} s, longest {seconds[-1]:.2f} s"
            )


if __name__ == "__main__":
    main()
