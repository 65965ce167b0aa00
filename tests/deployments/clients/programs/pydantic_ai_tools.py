"""A Pydantic AI agent whose output is a tool that must be called."""

import asyncio
import json
import sys
from typing import Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL, KEY = sys.argv[1:4]


class Lake(BaseModel, extra="forbid"):
    name: Literal["Como", "Garda"]
    size: Literal["small", "large"]
    salty: bool


async def described() -> dict[str, object]:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, output_type=ToolOutput(Lake), retries=0)
        settings = {"seed": 1, "max_tokens": 400, "parallel_tool_calls": False}
        return (await agent.run("Describe a lake.", model_settings=settings)).output.model_dump()


print("REPORT " + json.dumps(asyncio.run(described())))
