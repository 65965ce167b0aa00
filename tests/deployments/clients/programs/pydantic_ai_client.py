"""Pydantic AI's agents."""

import asyncio
from typing import Literal

from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import MAX_TOKENS, MODEL, URL, report


class Lake(BaseModel, extra="forbid"):
    name: str = Field(max_length=12)
    size: Literal["small", "large"]
    salty: bool


def ask(prompt: str, key: str, n: int, stream: bool) -> str:
    return asyncio.run(_asked(prompt, key, n, stream))


async def _asked(prompt: str, key: str, n: int, stream: bool) -> str:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0) as client:
        agent = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)))
        settings = {"temperature": 0, "max_tokens": MAX_TOKENS, "extra_body": {"n": n} if n > 1 else {}}
        if not stream:
            return (await agent.run(prompt, model_settings=settings)).output
        async with agent.run_stream(prompt, model_settings=settings) as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])


def describe(prompt: str, key: str) -> dict[str, object]:
    return asyncio.run(_described(prompt, key))


async def _described(prompt: str, key: str) -> dict[str, object]:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0) as client:
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, output_type=NativeOutput(Lake), retries=0)
        found = await agent.run(prompt, model_settings={"temperature": 0, "max_tokens": 200})
        return found.output.model_dump()


report(ask, describe)
