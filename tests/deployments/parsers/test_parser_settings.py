"""Settings that name parsers: every one, and no other."""

from __future__ import annotations

from typing import get_args

from cluster.config import ReasoningParser, ToolCallParser
from deployments.parsers.reasoning import FORMATS
from deployments.parsers.tool_formats import TOOL_FORMATS


def test_settings_name_every_parser():
    assert {*get_args(ToolCallParser)} == {"auto", "none", *TOOL_FORMATS}
    assert {*get_args(ReasoningParser)} == {"auto", "none", *FORMATS}
