"""Requests for answers go straight to their handlers; what else comes on their paths finds the router, and errors their shape."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from cluster.api_errors import bad_request
from deployments.http.errors import ERROR_HANDLERS
from deployments.http.straight_paths import StraightPaths

PATH = "/v1/completions"


async def answer(request: Request) -> Response:
    body = await request.json()
    if body == "wrong":
        raise bad_request("the body is wrong", "prompt")
    if body == "broken":
        raise LookupError("nothing there")
    return JSONResponse({"straight": "router" not in request.scope, "body": body})


@pytest.fixture(params=["", "/prefix"])
def client(request) -> TestClient:
    async def plain(request: Request) -> Response:
        return Response("routed")

    app = Starlette(
        routes=[Route(PATH, answer, methods=["POST"]), Route("/other", plain, methods=["POST"])],
        exception_handlers=ERROR_HANDLERS,
    )
    straight = StraightPaths(app, {PATH: answer})
    prefix = request.param
    return TestClient(straight, f"http://testserver{prefix}", raise_server_exceptions=False, root_path=prefix)


def test_the_handler_is_reached_past_the_router_under_any_prefix(client):
    assert client.post(PATH, json="well").json() == {"straight": True, "body": "well"}


def test_errors_look_as_everywhere(client):
    refused, broken = client.post(PATH, json="wrong"), client.post(PATH, json="broken")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")


def test_other_methods_and_paths_are_the_routers(client):
    assert client.get(PATH).status_code == 405 and "POST" in client.get(PATH).headers["allow"]
    assert client.options(PATH).status_code == 204
    assert client.post("/other").text == "routed"
    assert client.post(PATH + "/more", json="").status_code == 404
