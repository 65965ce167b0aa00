"""Python client of the HTTP API: ``Client`` blocks, ``AsyncClient`` awaits; both share requests, parsing and errors."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx

from cluster.api_types import Answer, Model
from cluster.client_errors import ClientError, status_error, stream_error

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "BIREME_API_KEY"
Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class _Shared:
    """What does not depend on how the client waits."""

    def __init__(
        self, url: str, model: str | None, api_key: str | None, timeout: float, connect_timeout: float
    ) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE, "").split(",")[0].strip()
        self.model = model
        self._options: dict[str, Any] = {
            "base_url": url.rstrip("/").removesuffix("/v1"),
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(timeout, connect=connect_timeout),
        }

    def _completion(self, prompt: Prompt, stream: bool, options: dict[str, Any]) -> dict[str, Any]:
        return self._post("/v1/completions", {"prompt": prompt}, stream, options)

    def _chat(self, messages: Messages, stream: bool, options: dict[str, Any]) -> dict[str, Any]:
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._post("/v1/chat/completions", {"messages": conversation}, stream, options)

    def _post(self, path: str, body: dict[str, Any], stream: bool, options: dict[str, Any]) -> dict[str, Any]:
        if self.model is not None:
            body["model"] = self.model
        return {"method": "POST", "url": path, "json": {**body, "stream": stream, **options}}


class _EventParser:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self.done = False

    def feed(self, line: str) -> Answer | None:
        """The chunk in ``line``, or None if it has none.

        Raises:
            ApiStatusError: the server ended the stream with an error.
        """
        if not line.startswith("data:"):
            return None
        data = line[5:].strip()
        if data == "[DONE]":
            self.done = True
            return None
        event = json.loads(data)
        if "error" in event:
            raise stream_error(event["error"])
        return Answer.parse(event)

    def close(self) -> None:
        """Raise ClientError if the stream ended without its last event."""
        if not self.done:
            raise ClientError("the server closed the stream before the answer was complete")


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise status_error(response.status_code, response.headers, response.content)
    return response.json()


def _unreachable(error: httpx.HTTPError, url: Any) -> ClientError:
    return ClientError(f"no answer from {url}: {str(error) or type(error).__name__}; is the server running?")


class Client(_Shared):
    """Blocking client; close it, or use it in a with statement.

    Args:
        url: of the server, with or without /v1.
        model: name to ask for; default: whatever the server has.
        api_key: bearer token; default: BIREME_API_KEY.
        timeout: longest wait for the next byte, in seconds.
        connect_timeout: longest wait for a connection, in seconds.

    Every method raises ClientError if the server cannot be reached, and an ApiStatusError if it refuses. Keyword options are
    the API's fields: max_tokens, temperature, seed, stop, ...
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
    ) -> None:
        super().__init__(url, model, api_key, timeout, connect_timeout)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> bool:
        """Whether the server is ready for requests."""
        try:
            return self._http.get("/health").status_code == 200
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    def models(self) -> list[Model]:
        """The served models."""
        return [Model.parse(item) for item in self._request({"method": "GET", "url": "/v1/models"})["data"]]

    def complete(self, prompt: Prompt, **options: Any) -> Answer:
        """Continue a text, token ids, or a batch of either."""
        return Answer.parse(self._request(self._completion(prompt, False, options)))

    def stream_complete(self, prompt: Prompt, **options: Any) -> Iterator[Answer]:
        """Like ``complete``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._completion(prompt, True, options))

    def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer a conversation; a string is one user message."""
        return Answer.parse(self._request(self._chat(messages, False, options)))

    def stream_chat(self, messages: Messages, **options: Any) -> Iterator[Answer]:
        """Like ``chat``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._chat(messages, True, options))

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _checked(self._http.request(**request))
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    def _stream(self, request: dict[str, Any]) -> Iterator[Answer]:
        try:
            with self._http.stream(**request) as response:
                if response.is_error:
                    response.read()
                    _checked(response)
                parser = _EventParser()
                for line in response.iter_lines():
                    chunk = parser.feed(line)
                    if chunk is not None:
                        yield chunk
                parser.close()
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error


class AsyncClient(_Shared):
    """``Client`` for asyncio; the same methods, awaited."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
    ) -> None:
        super().__init__(url, model, api_key, timeout, connect_timeout)
        self._http = httpx.AsyncClient(**self._options, limits=httpx.Limits(max_connections=None))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self) -> bool:
        """Whether the server is ready for requests."""
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    async def models(self) -> list[Model]:
        """The served models."""
        return [Model.parse(item) for item in (await self._request({"method": "GET", "url": "/v1/models"}))["data"]]

    async def complete(self, prompt: Prompt, **options: Any) -> Answer:
        """Continue a text, token ids, or a batch of either."""
        return Answer.parse(await self._request(self._completion(prompt, False, options)))

    def stream_complete(self, prompt: Prompt, **options: Any) -> AsyncIterator[Answer]:
        """Like ``complete``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._completion(prompt, True, options))

    async def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer a conversation; a string is one user message."""
        return Answer.parse(await self._request(self._chat(messages, False, options)))

    def stream_chat(self, messages: Messages, **options: Any) -> AsyncIterator[Answer]:
        """Like ``chat``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._chat(messages, True, options))

    async def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _checked(await self._http.request(**request))
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    async def _stream(self, request: dict[str, Any]) -> AsyncIterator[Answer]:
        try:
            async with self._http.stream(**request) as response:
                if response.is_error:
                    await response.aread()
                    _checked(response)
                parser = _EventParser()
                async for line in response.aiter_lines():
                    chunk = parser.feed(line)
                    if chunk is not None:
                        yield chunk
                parser.close()
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error
