"""The API's own description: whatever a model takes, it names."""

from __future__ import annotations

import re

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from cluster.api_errors import ApiError
from deployments.openai_api.openapi import Endpoint, docs_page, openapi
from deployments.openai_api.requests.fields import ROWS
from deployments.openai_api.requests.protocol import ChatCompletionRequest
from deployments.openai_api.requests.validation import RequestPart
from deployments.openai_api.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizePromptRequest


class Odd(RequestPart):
    """Takes <b>odd</b> things."""

    oddity: int = Field(3, ge=1, le=9)


async def handler(request: Request) -> Response:
    """Does & says <i>something</i>.

    Not shown.
    """
    return Response()


ENDPOINTS = [
    Endpoint("/odd/{name:path}", handler, ["GET", "POST"], [Odd], query={"much": "how <much>"}),
    Endpoint("/chat", handler, ["POST"], [ChatCompletionRequest]),
    Endpoint("/tokens", handler, ["POST"], [TokenizePromptRequest, TokenizeChatRequest, DetokenizeRequest]),
    Endpoint("/open", handler, needs_key=False),
]


def test_every_field_of_every_model_that_validates_is_described():
    document = openapi(ENDPOINTS, "1.2.3", "/prefix", needs_key=True)
    schemas = document["components"]["schemas"]
    for model in (Odd, ChatCompletionRequest, TokenizePromptRequest, TokenizeChatRequest, DetokenizeRequest):
        fields = [*model.model_fields, *(name for name in ROWS.get(model.place, ()) if name not in model.model_fields)]
        assert list(schemas[model.__name__]["properties"]) == fields
        for name, row in ROWS.get(model.place, {}).items():
            assert schemas[model.__name__]["properties"][name]["description"] == row.reason
    assert schemas["Odd"]["properties"]["oddity"] == {
        "anyOf": [{"maximum": 9, "minimum": 1, "type": "integer"}, {"type": "null"}], "default": 3, "title": "Oddity"
    }  # fmt: skip
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert named <= set(schemas)
    assert document["servers"] == [{"url": "/prefix"}]
    assert document["paths"]["/odd/{name}"]["post"]["security"] == [{"key": []}]
    assert document["paths"]["/open"]["get"]["security"] == []
    assert openapi(ENDPOINTS, "1", "", needs_key=False)["paths"]["/chat"]["post"]["security"] == []


def test_the_shape_of_errors_is_that_of_errors():
    error = openapi([], "1", "", needs_key=False)["components"]["schemas"]["Error"]["properties"]["error"]
    told = ApiError(400, "x").body()["error"]
    assert list(error["properties"]) == error["required"] == list(told)


def test_the_page_has_every_endpoint_and_field_and_loads_nothing():
    page = docs_page(openapi(ENDPOINTS, "1.2.3", "", needs_key=True))
    assert "POST /odd/{name}" in page and "<code>oddity</code>" in page and "Bireme 1.2.3" in page
    assert "Does &amp; says &lt;i&gt;something&lt;/i&gt;." in page and "how &lt;much&gt;" in page
    assert "Takes &lt;b&gt;odd&lt;/b&gt; things." in page and "Not shown" not in page
    assert all(f"<code>{name}</code>" in page for name in ChatCompletionRequest.model_fields)
    assert not re.findall(r"src=|url\(|@import|<script|<link|https?://", page)
    assert not re.search(r"\b(True|False|None)\b|'", page.partition("</style>")[2])
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert targets and targets <= set(re.findall(r'id="(\w+)"', page))
