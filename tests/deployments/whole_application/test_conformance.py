"""The table of docs/conformance.md, row by row, against a server."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.deployments.conftest import KEYS, App
from tests.deployments.whole_application.conformance import SECTIONS, Refused, Row, Works

# Names of Python and pydantic, and texts as Python shows them; an apostrophe is none.
NOT_JSON_WORDS = re.compile(
    r"\b(None|True|False|NoneType|dict|tuple|str|codec|char \d|Input should|[Pp]ydantic|[Pp]ython)\b|\b[bru]'|(?<!\w)'(?!x'\")"
)
ROWS = [row for rows in SECTIONS.values() for row in rows]


def sent(app: App, row: Row) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEYS[0]}", **row.headers}
    body = row.body
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.request(row.method, app.url + row.path, content=body, headers=headers, timeout=60)


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path; fails if nothing does."""
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path} {row.feature}"[:80])
def test_each_row_is_so(app: App, row: Row):
    response = sent(app, row)
    if isinstance(row.verdict, Refused):
        assert response.status_code == row.verdict.status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == row.verdict.code and row.verdict.says in error["message"]
        assert not NOT_JSON_WORDS.search(error["message"]), error["message"]
        return
    assert isinstance(row.verdict, Works)
    assert response.status_code == 200, response.text
    shows = row.verdict.shows
    if response.headers["Content-Type"].startswith("application/json") and row.method != "HEAD":
        assert not shows or at(response.json(), shows) is not None
    else:
        assert shows in response.text
