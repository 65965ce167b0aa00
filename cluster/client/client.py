"""Python client of the HTTP API: ``Client`` blocks, ``AsyncClient`` awaits; both share requests, parsing and errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx

from cluster.client.answer_parts import AnswerParts, streamed_request
from cluster.client.api_types import Answer, Model
from cluster.client.base import SILENT, SOUND, ClientBase, Messages, Prompt, checked
from cluster.errors import BiremeError


class Client(ClientBase[httpx.Client]):
    """Blocking client; close it, or use it in a with statement.

    Args:
        url: of the server, with or without /v1. Several, in a list or with commas between them, are addresses of one service: a
            request goes where the last one was answered, and to the next address if that fails. Each is tried before an error.
            A broken answer goes on at the first address whose proxy says that it is well.
        model: name to ask for; default: whatever the server has.
        api_key: bearer token; default: BIREME_API_KEY.
        timeout: longest wait for the next byte, in seconds. An answer counts as broken after a minute of silence, or when it has
            not begun within 2.5 seconds, or was silent for a second longer than its server promised to be at most (1.5
            seconds); who asks again in vain waits twice as long each time.
        connect_timeout: longest wait for a connection, in seconds; default: 10, or 2 if there is another address.
        max_resumes: how often in a row an answer whose connection broke is taken up where it was, at each address; 0 reports
            the break.

    A whole answer, too, travels as a stream, so that it loses nothing when the process behind it dies. Every method raises
    ClientError if the server cannot be reached, and an ApiStatusError if it refuses. Keyword options are the API's fields:
    max_tokens, temperature, seed, stop, ...
    """

    def _opened(self, options: dict[str, Any]) -> httpx.Client:
        self._looking = threading.Lock()
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
        return bool(self.readiness())

    def readiness(self) -> str:
        """What the server says of itself: "ok", "asleep" where the next request starts an engine, "" while it is not ready."""
        return self._readiness(self._get("/health"))

    def models(self) -> list[Model]:
        """The served models."""
        return [Model.parse(item) for item in self._object("/v1/models")["data"]]

    def status(self) -> dict[str, Any]:
        """Engines, their state and what they hold, as GET /v1/status reports them."""
        return self._object("/v1/status")

    def timeline(self, **options: Any) -> dict[str, Any]:
        """Chrome trace of an engine's next steps, as GET /v1/timeline records it; options: steps, timeout_s, engine."""
        return self._object("/v1/timeline", options)

    def trace(self, answer_id: str) -> dict[str, Any]:
        """The way of a request that the server had lately, as GET /v1/traces/ID reports it."""
        return self._object(f"/v1/traces/{quote(answer_id, safe='')}")

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

    def _object(self, path: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        return checked(self._get(path, options))

    def _get(self, path: str, options: dict[str, Any] | None = None) -> httpx.Response:
        for address in self._addresses.once_each():
            try:
                return self._http.get(address + path, params=options, timeout=self._look_timeout(options))
            except httpx.HTTPError as error:
                self._addresses.leave(address)
                last = error
        raise self._unreachable(last) from last

    def _whole(self, request: dict[str, Any]) -> Answer:
        parts = AnswerParts(request)
        for chunk in self._stream(streamed_request(request)):
            parts.add(chunk)
        return parts.whole()

    def _stream(self, request: dict[str, Any]) -> Iterator[Answer]:
        stream = self._resumable(request)
        while not stream.is_complete:
            address = self._addresses.current
            try:
                with self._http.stream(**self._asked(stream, address)) as response:
                    if response.is_error:
                        response.read()
                        checked(response)
                    self._listen_for(stream, response)
                    for line in response.iter_lines():
                        if (chunk := stream.feed(line)) is not None:
                            yield chunk
                    stream.end_of_response()
            except (httpx.HTTPError, BiremeError) as error:
                failed_at = time.monotonic()
                time.sleep(self._seconds_to_wait(stream, address, error))
                with self._looking:
                    self._look_around(self._worth_a_look(stream, address, failed_at))

    def _look_around(self, addresses: list[str]) -> None:
        """Go to the one whose proxy answers; all are asked at once."""
        if not addresses:
            return
        looks: dict[str, int] = {}
        pool = ThreadPoolExecutor(len(addresses))
        try:
            for address, verdict in zip(addresses, pool.map(self._sound, addresses)):
                looks[address] = verdict
                if verdict == SOUND:
                    break
        finally:
            pool.shutdown(wait=False)
        self._go_to_best(looks)

    def _sound(self, address: str) -> int:
        try:
            return self._verdict(address, self._http.get(**self._look(address)))
        except httpx.HTTPError:
            return SILENT


class AsyncClient(ClientBase[httpx.AsyncClient]):
    """``Client`` for asyncio; the same methods, awaited."""

    def _opened(self, options: dict[str, Any]) -> httpx.AsyncClient:
        self._looking = asyncio.Lock()
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
        return bool(await self.readiness())

    async def readiness(self) -> str:
        """What the server says of itself: "ok", "asleep" where the next request starts an engine, "" while it is not ready."""
        return self._readiness(await self._get("/health"))

    async def models(self) -> list[Model]:
        """The served models."""
        return [Model.parse(item) for item in (await self._object("/v1/models"))["data"]]

    async def status(self) -> dict[str, Any]:
        """Engines, their state and what they hold, as GET /v1/status reports them."""
        return await self._object("/v1/status")

    async def timeline(self, **options: Any) -> dict[str, Any]:
        """Chrome trace of an engine's next steps, as GET /v1/timeline records it; options: steps, timeout_s, engine."""
        return await self._object("/v1/timeline", options)

    async def trace(self, answer_id: str) -> dict[str, Any]:
        """The way of a request that the server had lately, as GET /v1/traces/ID reports it."""
        return await self._object(f"/v1/traces/{quote(answer_id, safe='')}")

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

    async def _object(self, path: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        return checked(await self._get(path, options))

    async def _get(self, path: str, options: dict[str, Any] | None = None) -> httpx.Response:
        for address in self._addresses.once_each():
            try:
                return await self._http.get(address + path, params=options, timeout=self._look_timeout(options))
            except httpx.HTTPError as error:
                self._addresses.leave(address)
                last = error
        raise self._unreachable(last) from last

    async def _whole(self, request: dict[str, Any]) -> Answer:
        parts = AnswerParts(request)
        async for chunk in self._stream(streamed_request(request)):
            parts.add(chunk)
        return parts.whole()

    async def _stream(self, request: dict[str, Any]) -> AsyncIterator[Answer]:
        stream = self._resumable(request)
        while not stream.is_complete:
            address = self._addresses.current
            try:
                async with self._http.stream(**self._asked(stream, address)) as response:
                    if response.is_error:
                        await response.aread()
                        checked(response)
                    self._listen_for(stream, response)
                    async for line in response.aiter_lines():
                        if (chunk := stream.feed(line)) is not None:
                            yield chunk
                    stream.end_of_response()
            except (httpx.HTTPError, BiremeError) as error:
                failed_at = time.monotonic()
                await asyncio.sleep(self._seconds_to_wait(stream, address, error))
                async with self._looking:
                    await self._look_around(self._worth_a_look(stream, address, failed_at))

    async def _look_around(self, addresses: list[str]) -> None:
        """Go to the one whose proxy answers; all are asked at once."""
        if not addresses:
            return
        looks: dict[str, int] = {}
        asked = [asyncio.create_task(self._sound(address)) for address in addresses]
        try:
            for address, verdict in zip(addresses, asked):
                looks[address] = await verdict
                if looks[address] == SOUND:
                    break
        finally:
            for verdict in asked:
                verdict.cancel()
        self._go_to_best(looks)

    async def _sound(self, address: str) -> int:
        try:
            return self._verdict(address, await self._http.get(**self._look(address)))
        except httpx.HTTPError:
            return SILENT
