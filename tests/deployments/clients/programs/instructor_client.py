"""Instructor, without a model of the answer and with one."""

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from report import MAX_TOKENS, MODEL, URL, report


class Lake(BaseModel, extra="forbid"):
    name: str = Field(max_length=12)
    size: Literal["small", "large"]
    salty: bool


def ask(prompt: str, key: str, n: int, stream: bool) -> str:
    client = instructor.from_openai(
        OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0), mode=instructor.Mode.MD_JSON
    )
    answer = client.chat.completions.create(
        model=MODEL,
        response_model=None,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        n=n,
        stream=stream,
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def describe(prompt: str, key: str) -> dict[str, object]:
    client = instructor.from_openai(
        OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0), mode=instructor.Mode.JSON_SCHEMA
    )
    lake = client.chat.completions.create(
        model=MODEL,
        response_model=Lake,
        max_retries=0,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=200,
    )
    return lake.model_dump()


report(ask, describe)
