"""What the blocking and the awaiting client have in common: what is sent, where to, and what a failure means."""

from __future__ import annotations

import functools
import os
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import httpx

from cluster.api_key import is_api_key
from cluster.client.addresses import Addresses
from cluster.client.answer_parts import CHAT_PATH
from cluster.client.errors import ClientError, status_error
from cluster.client.proxies import direct_mounts, heeds_environment, proxy_fault, proxy_note
from cluster.client.resumable import FALLBACK_PORT_HEADER, ResumableStream
from cluster.errors import BiremeError

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "BIREME_API_KEY"
COMPLETIONS_PATH = "/v1/completions"
# Silence for so long, of a server that promises nothing, is that of a process that hangs.
_SILENCE_S = 60.0
_LOOK_S = 5.0
# Every proxy of Serve answers here by itself, without an API key. A process that is stopped still takes connections; only an
# answer tells.
_SOUND_PATH = "/-/healthz"
_SOUND_S = 0.4
# How a proxy answers: well; that it starts or drains, though what it has may still pass; not at all.
SOUND, _UNSURE, SILENT = range(3)
# A node that is gone does not answer. Who knows another address does not wait for it long.
_CONNECT_S, _CONNECT_ELSEWHERE_S = 10.0, 2.0
Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once a process: it takes 20 ms, in which an event loop does nothing else."""
    return httpx.create_ssl_context()


class ClientBase(ABC, Generic[Http]):
    """What does not depend on how the client waits."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float | None = None,
        max_resumes: int = 12,
    ) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE, "").split(",")[0].strip()
        if key and not is_api_key(key):  # the errors of HTTP libraries would show it
            raise ClientError("api_key: expected visible ASCII characters without spaces", "api_key")
        self._has_key = bool(key)
        self.model = model
        self._max_resumes = max_resumes
        self._addresses = Addresses(url)
        self._looked_at = float("-inf")
        self._connect_timeout = connect_timeout
        self._silence_s = min(timeout, _SILENCE_S)
        self._timeout = timeout
        urls = [*self._addresses.once_each()]
        options = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "verify": _certificates(),
            "mounts": direct_mounts(urls),
            "trust_env": heeds_environment(urls),
        }
        try:
            self._http: Http = self._opened(options)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ClientError(proxy_fault(error)) from None

    @property
    def url(self) -> str:
        """Where the next request goes."""
        return self._addresses.current

    @property
    def _connect_s(self) -> float:
        """How long to wait for a connection."""
        if self._connect_timeout is not None:
            return self._connect_timeout
        return _CONNECT_ELSEWHERE_S if self._addresses.num_given > 1 else _CONNECT_S

    @property
    def urls(self) -> list[str]:
        """The addresses that were given."""
        return self._addresses.given

    @staticmethod
    def _readiness(response: httpx.Response) -> str:
        if response.status_code != 200:
            return ""
        try:
            status = response.json()["status"]
        except (ValueError, LookupError, TypeError):
            return "ok"  # servers of other kinds say nothing more
        return status if isinstance(status, str) and status else "ok"

    @abstractmethod
    def _opened(self, options: dict[str, Any]) -> Http:
        """HTTP client of the subclass's kind."""

    def _look_timeout(self, options: dict[str, Any] | None) -> httpx.Timeout:
        """One of several addresses that does not answer a mere look is passed over; what is asked for with options takes time."""
        is_mere_look = options is None and self._addresses.num_given > 1
        return httpx.Timeout(min(self._timeout, _LOOK_S) if is_mere_look else self._timeout, connect=self._connect_s)

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
        self._addresses.settle()
        # Token ids are what a broken stream is taken up with.
        body = {"return_token_ids": True, **request["json"], "stream": True}
        return ResumableStream({**request, "json": body}, self._max_resumes, len(self._addresses))

    def _asked(self, stream: ResumableStream, address: str) -> dict[str, Any]:
        """Arguments of httpx's ``stream``."""
        begin_s = stream.begin_limit(self._silence_s)
        timeout = httpx.Timeout(self._silence_s, connect=self._connect_s, read=begin_s)
        return {**stream.request(address), "timeout": timeout}

    def _listen_for(self, stream: ResumableStream, response: httpx.Response) -> None:
        """Give up on a response that has begun as soon as its server is silent for longer than it promised, and note where else
        that one says it answers. Whoever listens there would be sent the API key, so a client that has one wants to be told by
        its user."""
        if not self._has_key:
            self._addresses.learn_port(response.headers.get(FALLBACK_PORT_HEADER, ""))
        # The transport looks here when it begins to read the body.
        timeout = response.request.extensions["timeout"]
        timeout["read"] = stream.silence_limit(response.headers, self._silence_s)

    def _seconds_to_wait(self, stream: ResumableStream, address: str, error: httpx.HTTPError | BiremeError) -> float:
        """How long to wait before the stream is asked for again, after ``address`` failed it; what cannot be mended by asking
        again is raised."""
        if stream.is_complete:
            # Only the end of the connection came after the end of the answer.
            return 0.0
        wait = stream.seconds_to_wait(error)
        if wait is not None and stream.was_taken:
            # Where to go on is found out by looking.
            return wait
        if wait is not None or isinstance(error, httpx.HTTPError):
            self._addresses.leave(address)
        if wait is not None:
            return wait
        if isinstance(error, httpx.HTTPError):
            raise self._unreachable(error) from error
        raise error

    def _worth_a_look(self, stream: ResumableStream, address: str, failed_at: float) -> list[str]:
        """Addresses in the order in which ``stream`` may go on there after ``address`` failed it; none if it is clear where."""
        is_clear = stream.is_complete or not stream.was_taken or len(self._addresses) == 1
        # Of several requests that failed together the first one looks.
        has_moved = address != self._addresses.current or self._looked_at >= failed_at
        return [] if is_clear or has_moved else self._addresses.in_turn()

    def _go_to_best(self, looks: Mapping[str, int]) -> None:
        """Go to the first of the addresses that answered best."""
        self._looked_at = time.monotonic()
        self._addresses.go_to(min(looks, key=looks.__getitem__))

    @staticmethod
    def _look(address: str) -> dict[str, Any]:
        """Arguments of httpx's ``get``."""
        return {"url": address + _SOUND_PATH, "timeout": _SOUND_S}

    def _verdict(self, address: str, response: httpx.Response) -> int:
        # Where a server said that it answers, somebody else may; Serve's proxies say 200 here.
        if self._addresses.is_learned(address) and response.status_code != 200:
            return SILENT
        return _UNSURE if response.status_code >= 500 else SOUND

    def _unreachable(self, error: httpx.HTTPError) -> ClientError:
        return ClientError(
            f"no answer from {self._addresses}: {str(error) or type(error).__name__}; is the server running?"
            f"{proxy_note(self._addresses.current)}"
        )


def checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        note = proxy_note(str(response.request.url))
        raise status_error(response.status_code, response.headers, response.content, note)
    return response.json()
