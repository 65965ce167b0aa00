"""A plugin of pytest that notes what fails when it does, in the file that BIREME_FAILURE_NOTES names: a line each, an empty one
at the session's end. ``scripts/test.py`` reads them; of a session that broke off it knows no more."""

from __future__ import annotations

import os

import pytest


def _note(line: str) -> None:
    with open(os.environ["BIREME_FAILURE_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(f"{line}\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test, its set-up or its end."""
    if report.failed:
        _note(f"{report.nodeid} ({report.when})")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file."""
    if report.failed:
        _note(f"{report.nodeid} (collection)")


def pytest_sessionfinish() -> None:
    """All of them."""
    _note("")
