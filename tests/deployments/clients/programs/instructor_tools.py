"""Instructor, with a model of the answer as a tool that must be called."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

URL, MODEL, KEY = sys.argv[1:4]


class Lake(BaseModel, extra="forbid"):
    name: Literal["Como", "Garda"]
    size: Literal["small", "large"]
    salty: bool


client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0), mode=instructor.Mode.TOOLS)
lake = client.chat.completions.create(
    model=MODEL,
    response_model=Lake,
    max_retries=0,
    messages=[{"role": "user", "content": "Describe a lake."}],
    seed=1,
    max_tokens=400,
)
print("REPORT " + json.dumps(lake.model_dump()))
