"""Answers of a form over HTTP: schemas, patterns, choices, grammars; streamed, several at once, and refused with the place."""

from __future__ import annotations

import json
import re
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel

from tests.deployments.conftest import App

ASK = [{"role": "user", "content": "Describe a river."}]


class River(BaseModel):
    name: str
    continent: Literal["Africa", "Asia", "Europe"]
    long: bool


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "big": {"type": "boolean"},
        "rank": {"enum": [1, 2, 3]},
    },
    "required": ["name", "big", "rank"],
    "additionalProperties": False,
}
OF_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": SCHEMA}}}


def test_chats_follow_a_schema_streamed_as_whole_and_n_at_once(app: App):
    options = {
        "messages": ASK,
        "model": "smollm2-135m-instruct",
        "temperature": 1.0,
        "seed": 4,
        "max_tokens": 90,
        **OF_SCHEMA,
    }
    with app.openai() as client:
        whole = client.chat.completions.create(n=3, logprobs=True, **options)
        chunks = list(client.chat.completions.create(stream=True, **options))
        parsed = client.chat.completions.parse(
            model="smollm2-135m-instruct", messages=ASK, temperature=1.0, seed=1, max_tokens=200, response_format=River
        )
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert len({choice.message.content for choice in whole.choices}) > 1
    # Raw: what was likely, had there been no schema.
    assert whole.choices[0].logprobs.content[0].logprob < -1
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    choice = parsed.choices[0]
    assert choice.finish_reason == "length" or isinstance(choice.message.parsed, River)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_choice": ["blue 😀", "grün", "no\n"]}, "blue 😀|grün|no\n"),
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"structured_outputs": {"grammar": 'root ::= "a" tail\ntail ::= [0-9] [0-9]'}}, "a[0-9]{2}"),
        ({"guided_grammar": 'start: "x" y\ny: /[ab]{2}/'}, "x[ab]{2}"),
        ({"guided_json": {"enum": [[1, 2]]}, "guided_whitespace_pattern": "\\n?"}, r"\[\n?1\n?,\n?2\n?\]"),
        ({"structured_outputs": {"json": {"enum": [[1, 2]]}, "disable_any_whitespace": True}}, r"\[1,2\]"),
    ],
)
def test_completions_follow_patterns_choices_and_grammars(app: App, fields, pattern):
    body = {"prompt": "The sky is", "max_tokens": 30, "temperature": 1.0, "seed": 2, "n": 4, **fields}
    answer = app.post("/v1/completions", body).json()
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop" and re.fullmatch(pattern, choice["text"])


def test_what_cannot_be_followed_is_refused_with_its_place(app: App):
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    served = app.post("/v1/completions", {"prompt": "x", "guided_json": schema})
    error = served.json()["error"]
    assert (served.status_code, error["param"], error["code"]) == (400, "guided_json", "invalid_grammar")
    assert (
        "not supported at #/properties/a: Unimplemented keys" in error["message"] and "uniqueItems" in error["message"]
    )
    served = app.post("/v1/completions", {"prompt": "x", "guided_json": {}, "guided_whitespace_pattern": " "})
    assert (served.status_code, served.json()["error"]["param"]) == (400, "guided_whitespace_pattern")
    part = {"type": "regex", "pattern": "("}
    served = app.post("/v1/completions", {"prompt": "x", "structured_outputs": {"structural_tag": {"format": part}}})
    assert served.json()["error"]["param"] == "structured_outputs.structural_tag.format.pattern"
    streamed = app.post("/v1/completions", {"prompt": "x", "guided_regex": "(", "stream": True})
    assert streamed.status_code == 400 and "unclosed group" in streamed.json()["error"]["message"]
    cut = app.post("/v1/completions", {"prompt": "x", "guided_regex": "[0-9]{50}", "max_tokens": 3, "seed": 1}).json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["choices"][0]["text"].isdigit()
    app.wait_until_idle()
