"""The project's log lines are shown, whatever an import does to the root logger."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from cluster.process.logs import MAX_VALUE_CHARS, OneRecord, Seldom, guard_logs, log_fields, log_value

PROGRAM = """
import logging
before = logging.getLogger().handlers[:], logging.getLogger().level
from cluster.process.logs import Seldom, show_logs
show_logs()
show_logs()
assert (logging.getLogger().handlers, logging.getLogger().level) == before
{first}
logging.getLogger("bireme.engine").info("step one")
logging.getLogger("bireme.runner").debug("too much")
logging.getLogger("someone.else").info("not ours")
"""


@pytest.mark.parametrize("first", ["import paddle", "logging.getLogger().setLevel(logging.WARNING)"])
def test_lines_of_the_project_are_shown_once_and_the_root_logger_is_left_alone(first):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # By the logger's name: the path of a checkout, which warnings of imports show, may have the project's name in it, too.
    ours = [line for line in done.stderr.splitlines() if " bireme." in line or " someone." in line]
    assert len(ours) == 1
    assert ours[0].endswith("bireme.engine INFO step one")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("engine-1a2b:/x.y_z~@,+", "engine-1a2b:/x.y_z~@,+"),
        (7, "7"),
        ("a b=c", "a%20b%3Dc"),
        ("\"'\\\n\x1b\u2028", "%22%27%5C%0A%1B%E2%80%A8"),
        ("half \ud800", "half%20%ED%A0%80"),
        (b"\xff", "%FF"),
        ("x" * 1000, "x" * MAX_VALUE_CHARS),
    ],
)
def test_a_value_is_one_word(value, word):
    assert log_value(value) == word
    assert log_fields(event="x", request=value, n=1) == f"event=x request={word} n=1"


def lines(record_with: dict, message: str, *args: object, **options: object) -> str:
    """What a handler with a formatter like Serve's writes."""
    written: list[str] = []
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(request_id)s -- %(message)s"))
    handler.emit = lambda record: written.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.Logger("test")
    logger.addHandler(handler)
    # As Serve does it: by a filter of the handler, which is there before.
    handler.addFilter(lambda record: record.__dict__.update(record_with) or True)
    handler.addFilter(OneRecord())
    logger.error(message, *args, **options)
    return "\n".join(written)


def test_a_request_id_cannot_end_the_prefix_of_a_line():
    assert lines({"request_id": "x -- event=y request=z"}, "hello") == "ERROR x%20--%20event%3Dy%20request%3Dz -- hello"
    assert lines({"request_id": "already%20quoted"}, "hello") == "ERROR already%20quoted -- hello"


def test_a_record_is_not_taken_for_two():
    text = "one\nERROR id -- two\r\x1b[2K\u2028\x85three\tfour \u00e9 100%"
    expected = "ERROR id -- one\n    ERROR id -- two\\r\\x1b[2K\\u2028\\x85three\tfour \u00e9 100%"
    assert lines({"request_id": "id"}, "%s", text) == expected
    assert lines({"request_id": "id"}, "100%% of %s", "x") == "ERROR id -- 100% of x"


def test_a_traceback_cannot_begin_a_record():
    try:
        raise ValueError("one\nERROR id -- event=forged")
    except ValueError:
        written = lines({"request_id": "id"}, "failed", exc_info=True)
    first, *others = written.splitlines()
    assert first == "ERROR id -- failed"
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-2:] == ["    ValueError: one", "    ERROR id -- event=forged"]


def test_handlers_are_guarded_once():
    logger = logging.getLogger("guarded once")
    logger.addHandler(logging.NullHandler())
    guard_logs("guarded once")
    guard_logs("guarded once")
    assert [type(each) for each in logger.handlers[0].filters] == [OneRecord]


def test_a_loop_writes_a_line_once_and_again_after_a_while():
    now = 0.0
    may = Seldom(60.0, now=lambda: now)
    told = []
    for now in range(0, 130, 10):
        if may():
            told.append(now)
    assert told == [0, 60, 120]
