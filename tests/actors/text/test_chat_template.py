"""Chat templates: what they may use, and what the sandbox keeps them from."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from actors.text import chat_template
from actors.text.chat_template import ChatTemplate
from cluster.errors import InvalidRequestError, ModelLoadError

HI = [{"role": "user", "content": "hi"}]


def render(
    source: str,
    messages: list[dict[str, Any]] = HI,
    special: dict[str, str] | None = None,
    variables: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    return ChatTemplate(source, special or {}, "m").render(messages, template_kwargs=variables, **options)


def test_blocks_leave_no_blank_lines():
    source = "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}"
    assert render(source) == "user\n"


def test_variables():
    special = {"bos_token": "<s>"}
    source = (
        "{{ bos_token }}{{ tools | length }}{{ add_generation_prompt }}{{ enable_thinking }}{{ eos_token is defined }}"
    )
    assert render(source, special=special, tools=[{}], variables={"enable_thinking": False}) == "<s>1TrueFalseFalse"
    assert render("{{ tools is none }}{{ add_generation_prompt }}", add_generation_prompt=False) == "TrueFalse"


@pytest.mark.parametrize(
    "name", ["bos_token", "messages", "tools", "add_generation_prompt", "self", "raise_exception", "namespace"]
)
def test_callers_cannot_replace_what_has_a_meaning_in_a_template(name):
    with pytest.raises(InvalidRequestError, match=f"may not contain {name};") as caught:
        render("{{ bos_token }}", special={"bos_token": "<s>"}, variables={name: 1, "own": 2})
    assert caught.value.param == "chat_template_kwargs"


def test_a_variable_may_have_any_other_name():
    names = ["source", "template_kwargs", "variables", "context", "not an identifier"]
    assert render("{{ context }}", variables={name: name for name in names}) == "context"


def test_loop_controls_and_generation_blocks():
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "ahib"


def test_tojson_does_not_escape_for_html():
    assert render("{{ x | tojson }}", variables={"x": {"a": "<é>"}}) == '{"a": "<é>"}'
    assert render("{{ x | tojson(indent=2) }}", variables={"x": [1]}) == "[\n  1\n]"


def test_strftime_now():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


def test_text_parts_become_one_string():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("source", "content"), [("{{ messages[0].content }}", ""), ("{{ messages[0].content }}{# tool_calls #}", "None")]
)
def test_no_content_is_an_empty_one_where_the_template_knows_no_tool_calls(source, content):
    assert render(source, [{"role": "assistant", "content": None}]) == content


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, 5])
def test_other_parts_are_refused(part: Any):
    with pytest.raises(InvalidRequestError, match=r"messages\.1\.content may have parts of type text only") as caught:
        render("x", [*HI, {"role": "user", "content": [part]}])
    assert caught.value.param == "messages"


def test_refusal_by_the_template_is_the_clients_error():
    with pytest.raises(InvalidRequestError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source", ["{{ messages[5].content.x }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ undefined_function() }}"]
)
def test_failures_inside_the_template_are_the_clients_error(source: str):
    with pytest.raises(InvalidRequestError, match="cannot render these messages"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [0] * 99999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_sandbox(source: str):
    with pytest.raises(InvalidRequestError, match="cannot render these messages"):
        render(source)


def test_rendered_size_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
    assert len(render("{% for i in range(100) %}0123456789{% endfor %}")) == 1000
    with pytest.raises(InvalidRequestError, match="more than 1000 characters"):
        render("{% for i in range(101) %}0123456789{% endfor %}")


def test_template_that_is_not_jinja_is_a_load_error():
    with pytest.raises(ModelLoadError, match="the chat template of m is not valid"):
        ChatTemplate("{% for %}", {}, "m")
