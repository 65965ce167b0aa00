"""What the text of an answer must be like, as a request carries it from the ingress to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

JSON_SCHEMA = "json_schema"
REGEX = "regex"
CHOICE = "choice"
LARK = "grammar"
STRUCTURAL_TAG = "structural_tag"
KINDS = (JSON_SCHEMA, REGEX, CHOICE, LARK, STRUCTURAL_TAG)

# Characters of a grammar's text; what it may cost beyond is bounded where it is compiled.
MAX_GRAMMAR_CHARS = 65_536
# Between two tokens of JSON: as its printers write it. Without a bound a model that writes spaces can go on until max_tokens.
JSON_WHITESPACE = r"( {1,2}|\r?\n[ \t]{0,64})?"
ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Grammar:
    """Equal for requests that can share what is compiled.

    Attributes:
        kind: one of ``KINDS``.
        text: a JSON schema, a structural tag or a list of choices as JSON, a regular expression, or a grammar in Lark's syntax or
            EBNF.
        param: the field of the request that it came in, for errors.
        parts: schemas that ``text`` was made of, each with its own field, for errors too: the whole does not say whose it is.
        white_space: of a JSON schema, a regular expression of what may stand between two tokens; None: ``JSON_WHITESPACE``.
    """

    kind: str
    text: str
    param: str = field(default="response_format", compare=False)
    parts: tuple[Grammar, ...] = field(default=(), compare=False)
    white_space: Grammar | None = None
