"""Streams read through the official ``openai`` client, as chunks like those of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
from openai import AsyncOpenAI

from cluster.client.api_types import Answer
from cluster.client.resumable import RESUMABLE_HEADER
from tests.chaos.load.requests import is_chat

# Without and with ids, which its decoder remembers. It takes nothing up.
OPENAI, OPENAI_WITH_IDS = "openai", "openai with ids"
OPENAI_KINDS = {OPENAI, OPENAI_WITH_IDS}
# What its client raises, older ones for a connection that broke, and the decoder of what arrived.
OPENAI_ERRORS = (openai.OpenAIError, httpx.TransportError, ValueError)


async def openai_stream(client: AsyncOpenAI, number: int, body: dict[str, Any], kind: str) -> AsyncIterator[Answer]:
    """The chunks of request ``number``; closing the iterator closes the connection.

    Raises:
        OPENAI_ERRORS: the stream broke, was refused, or could not be read.
    """
    options: dict[str, Any] = {
        "stream": True,
        "extra_body": {**body, "stream_options": {"include_usage": True}},
        "extra_headers": {RESUMABLE_HEADER: "1"} if kind == OPENAI_WITH_IDS else {},
    }
    if is_chat(number):
        stream = await client.chat.completions.create(model="tiny", messages=[], **options)
    else:
        stream = await client.completions.create(model="tiny", prompt="", **options)
    async with stream:
        async for chunk in stream:
            yield Answer.parse(chunk.model_dump())


def is_break(error: Exception, codes: set[str | None]) -> bool:
    """An error of the way to the ingress: of the connection, or a proxy's status, whose code is among ``codes``."""
    if isinstance(error, openai.APIStatusError):
        return error.code in codes
    return isinstance(error, (openai.APIConnectionError, httpx.TransportError))
