"""LangChain's OpenAI chat model."""

from langchain_openai import ChatOpenAI
from report import MAX_TOKENS, MODEL, URL, report


def ask(prompt: str, key: str, n: int, stream: bool) -> str:
    model = ChatOpenAI(
        model=MODEL, base_url=f"{URL}/v1", api_key=key, temperature=0, max_tokens=MAX_TOKENS, n=n, max_retries=0
    )
    if not stream:
        return model.invoke(prompt).content
    return "".join(chunk.content for chunk in model.stream(prompt))


report(ask)
