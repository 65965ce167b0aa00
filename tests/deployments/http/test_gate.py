"""What each request passes: slashes, keys, origins; and errors of the router."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.http.errors import ERROR_HANDLERS
from deployments.http.gate import gate
from deployments.http.keys import ApiKeys

ORIGIN = "https://chat.example"
KEY = {"Authorization": "Bearer key"}
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


async def show(request: Request) -> Response:
    return JSONResponse({"path": request.url.path, **request.path_params})


def client(allowed_origins=(), keys=("key",), prefix="") -> httpx.AsyncClient:
    routes = [Route("/open", show), Route("/items", show), Route("/items/{id:path}", show), Route("/", show)]
    routes.append(Route("/make", show, methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers=ERROR_HANDLERS)
    gated = gate(app, ApiKeys(keys), ["/open"], allowed_origins)
    return httpx.AsyncClient(transport=httpx.ASGITransport(gated, root_path=prefix), base_url="http://x" + prefix)


@pytest.mark.parametrize("prefix", ["", "/models"])
async def test_slashes_at_the_end_are_no_part_of_a_path(prefix):
    async with client(prefix=prefix) as http:
        for path, there in (("/items/", "/items"), ("/items//", "/items"), ("/items/a/b/", "/items/a/b")):
            answer = await http.get(path, headers=KEY)
            assert (answer.status_code, answer.json()["path"]) == (200, prefix + there)
        assert (await http.get("/items/a/b/", headers=KEY)).json()["id"] == "a/b"
        assert (await http.get("/open/")).status_code == 200
        assert (await http.post("/make/", headers=KEY)).status_code == 200
        for path in ("/", "/items/", "/open/x", "/x/open", "/nothing/"):
            assert (await http.get(path)).status_code == 401
        assert (await http.get("/nothing/", headers=KEY)).status_code == 404


async def test_a_method_that_is_not_allowed_is_told_which_are():
    async with client() as http:
        refused = await http.get("/make", headers=KEY)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert "OPTIONS, POST" in refused.json()["error"]["message"]
        assert (await http.delete("/items", headers=KEY)).headers["Allow"] == "GET, HEAD, OPTIONS"
        assert (await http.head("/items", headers=KEY)).status_code == 200
        assert (await http.head("/make", headers=KEY)).status_code == 405
        asked = await http.options("/items", headers=KEY)
        assert (asked.status_code, asked.headers["Allow"], asked.content) == (204, "GET, HEAD, OPTIONS", b"")
        assert (await http.options("/nothing", headers=KEY)).status_code == 404
        assert (await http.options("/items")).status_code == 401


async def test_without_allowed_origins_no_page_reads_an_answer():
    async with client() as http:
        assert (await http.options("/make", headers=PREFLIGHT)).status_code == 401
        answer = await http.get("/items", headers={**KEY, "Origin": ORIGIN})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("allowed", [ORIGIN, "*"])
async def test_pages_of_allowed_origins_read_answers_and_never_with_cookies(allowed):
    async with client([allowed]) as http:
        asked = await http.options("/make", headers=PREFLIGHT)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, allowed)
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == "authorization"
        for headers, status in (({}, 401), (KEY, 200)):
            answer = await http.get("/items", headers={"Origin": ORIGIN, "Cookie": "a=b", **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] in (allowed, ORIGIN)
            assert "access-control-allow-credentials" not in {**answer.headers, **asked.headers}
        other = await http.get("/items", headers={**KEY, "Origin": "https://other.example"})
        assert ("access-control-allow-origin" in other.headers) == (allowed == "*")
        refused = await http.options("/make", headers={**PREFLIGHT, "Origin": "https://other.example"})
        assert refused.status_code == (200 if allowed == "*" else 400)
