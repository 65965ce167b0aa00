"""What every client program does: ask whole and as a stream, then meet three errors, and say in JSON what came.

Before the last error it says READY and waits for a line, behind which the server is busy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

URL, MODEL, KEY = sys.argv[1:4]
QUESTION = "Name the capital of France."
MAX_TOKENS = 20
# More sequences than a busy server has room for.
TOO_MANY = 16


def report(
    ask: Callable[[str, str, int, bool], str], describe: Callable[[str, str], dict[str, object]] | None = None
) -> None:
    """Print it.

    Args:
        ask: takes prompt, key, number of choices and whether to stream, and returns the answer's text.
        describe: takes prompt and key, and returns the fields of an object that the answer was read into.
    """
    found: dict[str, object] = {
        "whole": ask(QUESTION, KEY, 1, False),
        "streamed": ask(QUESTION, KEY, 1, True),
        "overflow": _failure(lambda: ask("word " * 9000, KEY, 1, False)),
        "overflow streamed": _failure(lambda: ask("word " * 9000, KEY, 1, True)),
        "key": _failure(lambda: ask(QUESTION, "wrong", 1, False)),
    }
    if describe is not None:
        found["described"] = describe("Describe a lake as JSON.", KEY)
    print("READY", flush=True)
    sys.stdin.readline()
    found["busy"] = _failure(lambda: ask(QUESTION, KEY, TOO_MANY, False))
    print("REPORT " + json.dumps(found))


def _failure(work: Callable[[], str]) -> dict[str, object]:
    """The classes of the error, its own first, and its status."""
    try:
        return {"classes": [], "status": 200, "message": work()[:200]}
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        return {"classes": names, "status": getattr(error, "status_code", None), "message": str(error)[:500]}
