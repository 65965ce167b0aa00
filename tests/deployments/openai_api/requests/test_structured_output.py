"""The form of an answer: what each way to say it comes to, and what is refused by name."""

from __future__ import annotations

import pytest

from cluster.api_errors import ApiError
from cluster.grammar import ANY_OBJECT, CHOICE, JSON_SCHEMA, LARK, MAX_GRAMMAR_CHARS, REGEX, STRUCTURAL_TAG, Grammar
from deployments.openai_api.requests.protocol import CompletionRequest, parse_request
from deployments.openai_api.requests.structured_output import grammar_of, structured_outputs

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"const": "é"}}}
TEXT = '{"type":"object","properties":{"z":{"type":"string"},"a":{"const":"\\u00e9"}}}'
DEEP: dict = {}
for _ in range(20_000):
    DEEP = {"items": DEEP}


def grammar(**fields) -> Grammar | None:
    return grammar_of(parse_request(CompletionRequest, {"prompt": "x", **fields}))


def of_schema(schema: object, **more) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}, "structured_outputs": {}, "guided_json": None}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(JSON_SCHEMA, ANY_OBJECT, "response_format")),
        (of_schema(SCHEMA, strict=True), Grammar(JSON_SCHEMA, TEXT, "response_format.json_schema.schema")),
        (of_schema(SCHEMA, strict=False), Grammar(JSON_SCHEMA, TEXT, "response_format.json_schema.schema")),
        (of_schema(None), Grammar(JSON_SCHEMA, ANY_OBJECT, "response_format")),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(JSON_SCHEMA, TEXT, "structured_outputs.json")),
        ({"structured_outputs": {"json": TEXT}}, Grammar(JSON_SCHEMA, TEXT, "structured_outputs.json")),
        ({"structured_outputs": {"json_object": True}}, Grammar(JSON_SCHEMA, ANY_OBJECT, "structured_outputs.json_object")),
        ({"structured_outputs": {"regex": "a+", "json": None, "x": None}}, Grammar(REGEX, "a+", "structured_outputs.regex")),
        ({"structured_outputs": {"structural_tag": "{}"}},
         Grammar(STRUCTURAL_TAG, "{}", "structured_outputs.structural_tag")),
        ({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
         Grammar(STRUCTURAL_TAG, '{"format":{"type":"any_text"}}', "response_format")),
        ({"response_format": {"type": "structural_tag", "structures": [{"begin": "<a>"}], "triggers": ["<"]}},
         Grammar(STRUCTURAL_TAG, '{"structures":[{"begin":"<a>"}],"triggers":["<"]}', "response_format")),
        ({"guided_json": SCHEMA}, Grammar(JSON_SCHEMA, TEXT, "guided_json")),
        ({"guided_regex": "a+"}, Grammar(REGEX, "a+", "guided_regex")),
        ({"guided_choice": ["a", "é"]}, Grammar(CHOICE, '["a","\\u00e9"]', "guided_choice")),
        ({"guided_grammar": "start: /a/"}, Grammar(LARK, "start: /a/", "guided_grammar")),
    ],
)  # fmt: skip
def test_each_way_to_say_it_is_one_grammar(fields, expected):
    found = grammar(**fields)
    assert found == expected and (found is None or found.param == expected.param)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", '"json_schema" or "structural_tag", got "xml"'),
        ({"response_format": {}}, "response_format.type", "is required"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema", "only for the type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "has format, or structures"),
        ({"response_format": {"type": "text", "format": {}}}, "response_format.format", 'only for the type "structural_tag"'),
        ({"response_format": {"typ": "text"}}, "response_format.typ", "did you mean type?"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unknown field"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        (of_schema([1]), "response_format.json_schema.schema", "must be a JSON schema, got [1]"),
        (of_schema({}, shcema={}), "response_format.json_schema.shcema", "unknown field"),
        (of_schema({"enum": ["x" * 100] * 1000}), "response_format.json_schema.schema", f"at most {MAX_GRAMMAR_CHARS} char"),
        ({"structured_outputs": {"structural_tag": 1}}, "structured_outputs.structural_tag", "must be a structural tag"),
        ({"structural_tag": {}}, "structural_tag", "response_format or structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "at least 1 character"),
        ({"guided_choice": []}, "guided_choice", "at least 1 item"),
        ({"guided_choice": ["a", 1]}, "guided_choice.1", "must be a string"),
        ({"guided_regex": 5}, "guided_regex", "must be a string"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "guided_regex says one, too"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex", "an answer has one form"),
        ({"guided_json": {}, "guided_whitespace_pattern": 1}, "guided_whitespace_pattern", "must be a string"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "only allowed where the answer is JSON"),
        ({"guided_regex": "a", "structured_outputs": {"disable_any_whitespace": True}},
         "structured_outputs.disable_any_whitespace", "only allowed where the answer is JSON"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": ""}, "guided_whitespace_pattern": ""},
         "guided_whitespace_pattern", "structured_outputs.whitespace_pattern says"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(fields, param, message):
    with pytest.raises(ApiError) as refused:
        grammar(**fields)
    assert refused.value.status == 400 and refused.value.param == param
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("fields", "pattern", "param"),
    [
        ({"guided_json": {}, "guided_whitespace_pattern": " ?"}, " ?", "guided_whitespace_pattern"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"whitespace_pattern": "\n?"}}, "\n?",
         "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}}, "",
         "structured_outputs.disable_any_whitespace"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": False}}, None, ""),
    ],
)  # fmt: skip
def test_json_has_the_white_space_that_a_request_says(fields, pattern, param):
    found = grammar(**fields)
    assert found is not None and found.kind == JSON_SCHEMA
    assert found.white_space == (None if pattern is None else Grammar(REGEX, pattern))
    assert found.white_space is None or found.white_space.param == param
    again = grammar(structured_outputs=structured_outputs(found))
    assert again == found, "a library's request is the same"


def test_a_schema_that_is_nested_too_deep_is_refused():
    request = parse_request(CompletionRequest, {"prompt": "x"})
    request.guided_json = DEEP
    with pytest.raises(ApiError, match="guided_json: must"):
        grammar_of(request)
