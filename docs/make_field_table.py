"""Write the tables of docs/fields.md from ``deployments.openai_api.requests.fields``, which the checks of requests read.

``python docs/make_field_table.py`` writes the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deployments.openai_api.requests.fields import (  # noqa: E402 (the script runs without an installed package)
    ALLOWED_TOOLS,
    CALLED_FUNCTION,
    CHAT,
    CHOSEN_FUNCTION,
    CHOSEN_TOOL,
    COMPLETION,
    CONTENT_PART,
    DETOKENIZE,
    MESSAGE,
    OFFERED_TOOLS,
    RESPONSE_FORMAT,
    RESPONSE_SCHEMA,
    RESUME,
    RESUMED_CHOICE,
    ROWS,
    STREAM_OPTIONS,
    STRUCTURED_OUTPUTS,
    THINKING,
    TOKENIZE,
    TOKENIZE_CHAT,
    TOOL,
    TOOL_CALL,
    TOOL_FUNCTION,
    FieldRow,
    Verdict,
)

PAGE = ROOT / "docs" / "fields.md"
HEAD = """# Fields of a request

Every field of the request models of OpenAI and vLLM, and what this server makes of it: it works; its values are checked and
change nothing; or it is refused, but for values that ask for nothing. A field that is null counts as absent, in every object, and
3.0 as an integer. A field that is not here is refused with the nearest name that is, or left out with the setting
`unknown_fields: ignore`.

Written by `docs/make_field_table.py` from `deployments/openai_api/requests/fields.py`, which the checks read.
"""
TITLES = {
    (COMPLETION, CHAT): "Completions and chats",
    (COMPLETION,): "Completions",
    (CHAT,): "Chats",
    (MESSAGE,): "Messages of a chat",
    (CONTENT_PART,): "Parts of a message's content",
    (TOOL_CALL,): "Tool calls of an assistant's message",
    (CALLED_FUNCTION,): "function of a tool call",
    (RESPONSE_FORMAT,): "response_format",
    (RESPONSE_SCHEMA,): "json_schema of response_format",
    (STRUCTURED_OUTPUTS,): "structured_outputs",
    (STREAM_OPTIONS,): "stream_options",
    (TOOL,): "one of tools",
    (TOOL_FUNCTION,): "function of a tool",
    (CHOSEN_TOOL,): "tool_choice",
    (CHOSEN_FUNCTION,): "function of tool_choice",
    (ALLOWED_TOOLS,): "tool_choice of allowed tools",
    (OFFERED_TOOLS,): "allowed_tools of tool_choice",
    (THINKING,): "thinking",
    (RESUME,): "resume",
    (RESUMED_CHOICE,): "choices of resume",
    (TOKENIZE,): "/tokenize with a prompt",
    (TOKENIZE_CHAT,): "/tokenize with messages",
    (DETOKENIZE,): "/detokenize",
}


def verdict_text(row: FieldRow) -> str:
    """What becomes of the field, with the values that pass where it is refused."""
    if row.verdict is not Verdict.REFUSED:
        return {Verdict.WORKS: "works", Verdict.NO_OP: "changes nothing"}[row.verdict]
    passes = ", ".join(f"`{json.dumps(value)}`" for value in row.harmless)
    return f"refused, but for {passes}" if passes else "refused"


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    order = list(Verdict)
    for places, title in TITLES.items():
        rows = [row for row in ROWS[places[0]].values() if _is_of(row, places)]
        parts.append(f"## {title}\n| field | | |\n|---|---|---|")
        for row in sorted(rows, key=lambda row: order.index(row.verdict)):
            parts.append(f"| `{row.name}` | {verdict_text(row)} | {row.reason} |")
        parts.append("")
    return "\n".join(parts)


def _is_of(row: FieldRow, places: tuple[str, ...]) -> bool:
    """Whether the row belongs under these places; only completions and chats have a table of what they share."""
    return row.places == places or (
        len(places) == 1 and places[0] not in (COMPLETION, CHAT) and places[0] in row.places
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
