"""LiteLLM."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched

import litellm
from report import MAX_TOKENS, MODEL, URL, report


def ask(prompt: str, key: str, n: int, stream: bool) -> str:
    answer = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{URL}/v1",
        api_key=key,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        n=n,
        stream=stream,
        num_retries=0,
        max_retries=0,
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


report(ask)
