"""Readers of event streams by the rules of those that people use, as strict as each of them is: written from their rules, none
of their code. A reader takes what arrives piece by piece and gives the JSON objects, up to ``[DONE]``; what it cannot read it
raises for, or loses, as its original does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

Reader = Callable[[Iterable[bytes]], list[dict[str, Any]]]


def openai_python(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """``openai`` 1.50, 2.0 and 3.54: an event ends at a blank line if any field is known, and an id stays known."""
    return _decoded(pieces, keeps_id=True)


def openai_js(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """``openai`` 6.49 for JavaScript: knows no ids."""
    return _decoded(pieces, keeps_id=False)


def httpx_sse(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """httpx-sse 0.4: like ``openai`` for Python; the caller reads the JSON of every event."""
    return _decoded(pieces, keeps_id=True)


def langchain(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """langchain-openai 1.7 reads through ``openai`` and wants a list of choices in each chunk."""
    found = openai_python(pieces)
    for chunk in found:
        if "error" in chunk:
            continue
        for choice in chunk["choices"][:1]:
            _ = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return found


def dify(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """Dify's plug-in for such servers: blocks, stripped; the first that is no JSON ends the answer."""
    found = []
    for block in _blocks(pieces):
        block = block.strip()
        if not block or block.startswith(":"):
            continue
        data = block.removeprefix("data: ").lstrip()
        if data == "[DONE]":
            continue
        try:
            found.append(json.loads(data))
        except ValueError:
            break
    return found


def vllm_bench(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """vLLM's serving benchmark: what one read of the network brings is stripped before it is looked for blocks, or taken for one
    that is complete."""
    found, held = [], ""
    for piece in pieces:
        held += piece.strip().decode()
        *messages, held = held.split("\n\n")
        data = held.removeprefix("data: ").strip()
        if held.startswith("data: ") and data and (data == "[DONE]" or _is_json(data)):
            messages, held = [*messages, held], ""
        for message in map(str.strip, messages):
            if message and not message.startswith(":") and (data := message.removeprefix("data: ")) != "[DONE]":
                found.append(json.loads(data))
    return found


def sglang_bench(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """SGLang's serving benchmark: each line that is not blank is JSON behind ``data: ``."""
    lines = [line.strip().decode().removeprefix("data: ") for line in b"".join(pieces).split(b"\n")]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]


def unstripped_blocks(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """Many a page in JavaScript: blocks that begin with ``data: ``; others are passed over."""
    blocks = [block for block in _blocks(pieces) if block.startswith("data: ")]
    return [json.loads(block[6:]) for block in blocks if block != "data: [DONE]"]


def text_lines(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """``iter_lines`` of httpx, and of requests for text: every line end that Unicode knows."""
    lines = [line[6:] for line in b"".join(pieces).decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def counting(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """go-openai: gives up after 300 lines in a row without data."""
    found, idle = [], 0
    for line in b"".join(pieces).split(b"\n"):
        if line.startswith(b"data:"):
            idle = 0
            data = line[5:].strip()
            if data == b"[DONE]":
                return found
            found.append(json.loads(data))
            continue
        idle += 1
        if idle > 300:
            raise ValueError("stream has sent too many empty messages")
    return found


# Those that know ids, and comments between the lines of an event.
DECODERS: list[Reader] = [openai_python, openai_js, httpx_sse, langchain, text_lines, counting]
# Those that know nothing but data.
SPLITTERS: list[Reader] = [dify, vllm_bench, sglang_bench, unstripped_blocks]
READERS = DECODERS + SPLITTERS


def _decoded(pieces: Iterable[bytes], keeps_id: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    data: list[str] = []
    has_id = False
    for raw in b"".join(pieces).splitlines():
        line = raw.decode()
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name == "id":
            has_id = keeps_id and bool(value.strip())
        elif not line and (data or has_id):
            event, data = "\n".join(data), []
            if event.startswith("[DONE]"):
                break
            found.append(json.loads(event))
    return found


def _blocks(pieces: Iterable[bytes]) -> list[str]:
    return b"".join(pieces).decode().split("\n\n")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
