"""Instructor, without a model of the answer: the default model here is too small to fill one in."""

import instructor
from openai import OpenAI
from report import MAX_TOKENS, MODEL, URL, report


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


report(ask)
