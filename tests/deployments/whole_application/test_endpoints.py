"""The small endpoints over HTTP, as vLLM has them."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from cluster import __version__
from cluster.config import DEFAULT_MODEL
from tests.deployments.conftest import ALIAS, KEYS, ORIGIN, App

KEY = {"Authorization": f"Bearer {KEYS[0]}"}
CHAT = [{"role": "system", "content": "Be <|im_end|> brief."}, {"role": "user", "content": "What is 日本?"}]


def get(app: App, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, app.url + path, headers={**KEY, **headers}, timeout=60)


def test_counted_tokens_are_those_of_a_generation(app: App):
    for path, prompt in (
        ("/v1/completions", {"prompt": "Hello <|im_end|> 日本"}),
        ("/v1/chat/completions", {"messages": CHAT}),
    ):
        answer = app.post(path, {**prompt, "max_tokens": 1, "return_token_ids": True}).json()
        ids = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
        found = app.post("/tokenize", {**prompt, "model": DEFAULT_MODEL, "return_token_strs": True}).json()
        assert set(found) == {"count", "max_model_len", "tokens", "token_strs"}
        assert (found["tokens"], found["count"]) == (ids, len(ids))
        assert found["max_model_len"] == app.openai().models.list().data[0].model_extra["max_model_len"]
        assert len(found["token_strs"]) == len(ids) and "<|im_end|>" in found["token_strs"]
        text = app.post("/detokenize", {"tokens": ids}).json()
        assert set(text) == {"prompt"} and ("日本" in text["prompt"]) and ("<|im_end|>" in text["prompt"])
    assert app.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    assert app.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


def test_more_than_the_model_takes_is_counted_up_to_the_bodies_limit(app: App):
    found = app.post("/tokenize/", {"prompt": "word " * 18_000}).json()
    assert found["count"] > found["max_model_len"]
    assert app.post("/detokenize", {"tokens": found["tokens"][:9000]}).json()["prompt"] == ("word " * 9000).rstrip()
    refused = app.post("/tokenize", {"prompt": "word " * 40_000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": ["x"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": CHAT}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "\ud800"}, 400, "prompt"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages.0.role"),
        ("/tokenize", {"messages": CHAT, "tools": [{}]}, 400, "tools.0.function"),
        ("/tokenize", {"prompt": "x", "wat": 1}, 400, "wat"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [True]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
        ("/detokenize", [], 400, None),
    ],
)
def test_bad_requests_name_the_field(app: App, path, body, status, param):
    response = app.post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_who_the_server_is_and_what_it_does(app: App):
    info = get(app, "/tokenizer_info").json()
    assert info["tokenizer_class"] and "im_start" in info["chat_template"] and info["eos_token"] == "<|im_end|>"
    assert info["added_tokens_decoder"]["2"]["content"] == "<|im_end|>"
    assert get(app, "/version").json() == {"version": __version__}
    app.wait_until_idle()
    assert get(app, "/load").json() == {"server_load": 0}
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{app.url}/ping/").json() == {"status": "ok"}
    assert get(app, "/v1/models/").json() == get(app, "/v1/models").json()
    head = get(app, "/v1/models", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    options = get(app, "/v1/completions", "OPTIONS")
    assert (options.status_code, options.headers["Allow"]) == (204, "OPTIONS, POST")
    refused = get(app, "/tokenize")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")
    for path in ("/tokenizer_info", "/version", "/load", "/docs", "/openapi.json"):
        assert httpx.get(app.url + path).status_code == 401


def test_a_model_is_asked_for_under_each_of_its_names(app: App):
    models = app.openai().models.list().data
    assert [model.id for model in models] == [DEFAULT_MODEL, ALIAS]
    assert get(app, f"/v1/models/{ALIAS}").json() == {**get(app, f"/v1/models/{DEFAULT_MODEL}").json(), "id": ALIAS}
    body = {"prompt": "The sea", "max_tokens": 4, "temperature": 0, "seed": 1}
    answers = [app.post("/v1/completions", {**body, "model": name}).json() for name in (DEFAULT_MODEL, ALIAS)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert [answer["model"] for answer in answers] == [DEFAULT_MODEL] * 2
    refused = app.post("/v1/completions", {**body, "model": "others"})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"].endswith(f'this server has "{DEFAULT_MODEL}", "{ALIAS}"')


def test_the_servers_description_names_what_it_has(app: App):
    document = get(app, "/openapi.json").json()
    assert document["info"]["version"] == __version__
    for path, operations in document["paths"].items():
        for method in operations:
            if "timeline" in path:
                continue
            answer = get(app, path.replace("{model_id}", DEFAULT_MODEL), method.upper())
            # No request has the id {id}, which is said in the shape of the API's errors.
            is_there = answer.status_code != 404 or ("{id}" in path and answer.json()["error"]["code"])
            assert is_there and answer.status_code not in (401, 405, 500), path
    page = get(app, "/docs")
    assert (
        page.headers["Content-Type"].startswith("text/html")
        and "default-src 'none'" in page.headers["Content-Security-Policy"]
    )
    assert all(path in page.text for path in document["paths"])


def test_a_page_of_an_allowed_origin_asks_without_a_key_and_reads_with_one(app: App):
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    asked = httpx.options(f"{app.url}/v1/chat/completions", headers=preflight)
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    answer = get(app, "/v1/models", Origin=ORIGIN)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_gzip_requests_are_read_within_the_bodies_limit(app: App):
    def post(body: bytes) -> httpx.Response:
        headers = {**KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        return httpx.post(f"{app.url}/v1/completions", content=gzip.compress(body), headers=headers, timeout=60)

    request = {"prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    answer = post(json.dumps(request).encode()).json()
    assert answer["choices"][0]["text"] == app.post("/v1/completions", request).json()["choices"][0]["text"]
    refused = post(json.dumps({"prompt": "x" * 10**7}).encode())
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
