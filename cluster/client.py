"""Python client of the HTTP API: ``Client`` blocks, ``AsyncClient`` awaits; both share requests, parsing and errors."""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import httpx

from cluster.answer_parts import CHAT_PATH, AnswerParts, streamed_request
from cluster.api_types import Answer, Model
from cluster.client_errors import ClientError, status_error
from cluster.errors import BiremeError
from cluster.resumable import ResumableStream

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "BIREME_API_KEY"
COMPLETIONS_PATH = "/v1/completions"
# The server writes something every ten seconds, if only a comment. Silence for so long is that of a process that hangs.
_SILENCE_S = 60.0
Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


class _Shared(ABC, Generic[_Http]):
    """What does not depend on how the client waits."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        max_resumes: int = 12,
    ) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE, "").split(",")[0].strip()
        self.model = model
        self._max_resumes = max_resumes
        self._stream_timeout = httpx.Timeout(min(timeout, _SILENCE_S), connect=connect_timeout)
        self._http: _Http = self._opened(
            {
                "base_url": url.rstrip("/").removesuffix("/v1"),
                "headers": {"Authorization": f"Bearer {key}"} if key else {},
                "timeout": httpx.Timeout(timeout, connect=connect_timeout),
            }
        )

    @abstractmethod
    def _opened(self, options: dict[str, Any]) -> _Http:
        """HTTP client of the subclass's kind."""

    def _completion(self, prompt: Prompt, options: dict[str, Any]) -> dict[str, Any]:
        return self._post(COMPLETIONS_PATH, {"prompt": prompt}, options)

    def _chat(self, messages: Messages, options: dict[str, Any]) -> dict[str, Any]:
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._post(CHAT_PATH, {"messages": conversation}, options)

    def _post(self, path: str, body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if self.model is not None:
            body["model"] = self.model
        return {"method": "POST", "url": path, "json": {**body, **options}}

    def _resumable(self, request: dict[str, Any]) -> ResumableStream:
        # Token ids are what a broken stream is taken up with.
        body = {"return_token_ids": True, **request["json"], "stream": True}
        return ResumableStream({**request, "json": body, "timeout": self._stream_timeout}, self._max_resumes)

    def _seconds_to_wait(self, stream: ResumableStream, error: httpx.HTTPError | BiremeError) -> float:
        """How long to wait before the stream is asked for again; what cannot be mended by asking again is raised."""
        wait = stream.seconds_to_wait(error)
        if wait is not None:
            return wait
        if isinstance(error, httpx.HTTPError):
            raise _unreachable(error, self._http.base_url) from error
        raise error


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise status_error(response.status_code, response.headers, response.content)
    return response.json()


def _unreachable(error: httpx.HTTPError, url: Any) -> ClientError:
    return ClientError(f"no answer from {url}: {str(error) or type(error).__name__}; is the server running?")


class Client(_Shared[httpx.Client]):
    """Blocking client; close it, or use it in a with statement.

    Args:
        url: of the server, with or without /v1.
        model: name to ask for; default: whatever the server has.
        api_key: bearer token; default: BIREME_API_KEY.
        timeout: longest wait for the next byte, in seconds; an answer counts as broken after a minute of silence.
        connect_timeout: longest wait for a connection, in seconds.
        max_resumes: how often in a row an answer whose connection broke is taken up where it was; 0 reports the break.

    A whole answer, too, travels as a stream, so that it loses nothing when the process behind it dies. Every method raises
    ClientError if the server cannot be reached, and an ApiStatusError if it refuses. Keyword options are the API's fields:
    max_tokens, temperature, seed, stop, ...
    """

    def _opened(self, options: dict[str, Any]) -> httpx.Client:
        return httpx.Client(**options)

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

    def status(self) -> dict[str, Any]:
        """Engines, their state and what they hold, as GET /v1/status reports them."""
        return self._request({"method": "GET", "url": "/v1/status"})

    def timeline(self, **options: Any) -> dict[str, Any]:
        """Chrome trace of an engine's next steps, as GET /v1/timeline records it; options: steps, timeout_s, engine."""
        return self._request({"method": "GET", "url": "/v1/timeline", "params": options})

    def complete(self, prompt: Prompt, **options: Any) -> Answer:
        """Continue a text, token ids, or a batch of either."""
        return self._whole(self._completion(prompt, options))

    def stream_complete(self, prompt: Prompt, **options: Any) -> Iterator[Answer]:
        """Like ``complete``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._completion(prompt, options))

    def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer a conversation; a string is one user message."""
        return self._whole(self._chat(messages, options))

    def stream_chat(self, messages: Messages, **options: Any) -> Iterator[Answer]:
        """Like ``chat``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._chat(messages, options))

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _checked(self._http.request(**request))
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    def _whole(self, request: dict[str, Any]) -> Answer:
        parts = AnswerParts(request)
        for chunk in self._stream(streamed_request(request)):
            parts.add(chunk)
        return parts.whole()

    def _stream(self, request: dict[str, Any]) -> Iterator[Answer]:
        stream = self._resumable(request)
        while not stream.is_complete:
            try:
                with self._http.stream(**stream.request()) as response:
                    if response.is_error:
                        response.read()
                        _checked(response)
                    for line in response.iter_lines():
                        if (chunk := stream.feed(line)) is not None:
                            yield chunk
                    stream.end_of_response()
            except (httpx.HTTPError, BiremeError) as error:
                time.sleep(self._seconds_to_wait(stream, error))


class AsyncClient(_Shared[httpx.AsyncClient]):
    """``Client`` for asyncio; the same methods, awaited."""

    def _opened(self, options: dict[str, Any]) -> httpx.AsyncClient:
        return httpx.AsyncClient(**options, limits=httpx.Limits(max_connections=None))

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

    async def status(self) -> dict[str, Any]:
        """Engines, their state and what they hold, as GET /v1/status reports them."""
        return await self._request({"method": "GET", "url": "/v1/status"})

    async def timeline(self, **options: Any) -> dict[str, Any]:
        """Chrome trace of an engine's next steps, as GET /v1/timeline records it; options: steps, timeout_s, engine."""
        return await self._request({"method": "GET", "url": "/v1/timeline", "params": options})

    async def complete(self, prompt: Prompt, **options: Any) -> Answer:
        """Continue a text, token ids, or a batch of either."""
        return await self._whole(self._completion(prompt, options))

    def stream_complete(self, prompt: Prompt, **options: Any) -> AsyncIterator[Answer]:
        """Like ``complete``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._completion(prompt, options))

    async def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer a conversation; a string is one user message."""
        return await self._whole(self._chat(messages, options))

    def stream_chat(self, messages: Messages, **options: Any) -> AsyncIterator[Answer]:
        """Like ``chat``, chunk by chunk; closing the iterator cancels the request."""
        return self._stream(self._chat(messages, options))

    async def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _checked(await self._http.request(**request))
        except httpx.HTTPError as error:
            raise _unreachable(error, self._http.base_url) from error

    async def _whole(self, request: dict[str, Any]) -> Answer:
        parts = AnswerParts(request)
        async for chunk in self._stream(streamed_request(request)):
            parts.add(chunk)
        return parts.whole()

    async def _stream(self, request: dict[str, Any]) -> AsyncIterator[Answer]:
        stream = self._resumable(request)
        while not stream.is_complete:
            try:
                async with self._http.stream(**stream.request()) as response:
                    if response.is_error:
                        await response.aread()
                        _checked(response)
                    async for line in response.aiter_lines():
                        if (chunk := stream.feed(line)) is not None:
                            yield chunk
                    stream.end_of_response()
            except (httpx.HTTPError, BiremeError) as error:
                await asyncio.sleep(self._seconds_to_wait(stream, error))
