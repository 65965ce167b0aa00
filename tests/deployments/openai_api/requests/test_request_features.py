"""Fields that change a prompt or how an answer is shown, with the engines played by a list of tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.api_errors import ApiError
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.actors.text.tiny_tokenizer import byte_tokenizer, sentencepiece_tokenizer
from tests.deployments.played_engines import Engines

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TRIMMING = "{% for m in messages %}{{ '[' + m.content | trim + ']' }}{% endfor %}"
BEGUN = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "12 </s> 3 "}]


def service(template: str = CHATML, tokens: str = "ab", max_model_len: int = 64, **options: Any) -> OpenAiService:
    tokenizer = byte_tokenizer(template)
    chats = ChatPrompts(tokenizer, **options)
    limits = ModelLimits(max_model_len, tokenizer.vocab_size)
    return OpenAiService(Engines(tokenizer.encode(tokens)), tokenizer, "m", limits, 4, chats)


async def prompt(body: dict[str, Any], *args: Any, **options: Any) -> str:
    """Of a chat."""
    _, answer = await service(*args, **options).chat({"messages": BEGUN, **body})
    return byte_tokenizer().decode(answer.prompt_ids[0], skip_special_tokens=False)


async def refused(body: dict[str, Any], param: str, *args: Any, **options: Any) -> str:
    with pytest.raises(ApiError) as caught:
        await prompt(body, *args, **options)
    assert (caught.value.status, caught.value.param) == (400, param)
    return caught.value.message


async def test_the_last_message_goes_on_where_its_content_ends():
    assert await prompt({"continue_final_message": True}) == "<s>user\ncount</s><s>assistant\n12 </s> 3 "
    assert (
        await prompt({"continue_final_message": True, "add_generation_prompt": False}, TRIMMING) == "[count][12 </s> 3"
    )
    assert (await prompt({"continue_final_message": False})).endswith("</s><s>assistant\n")


async def test_a_message_that_goes_on_keeps_its_special_tokens_text():
    _, answer = await service().chat({"messages": BEGUN, "continue_final_message": True})
    tokenizer = byte_tokenizer()
    assert [i for i in answer.prompt_ids[0] if i in tokenizer.special_ids] == tokenizer.encode("<s></s><s>")


async def test_two_ends_of_a_prompt_are_refused():
    body = {"continue_final_message": True, "add_generation_prompt": True}
    await refused(body, "continue_final_message")
    await refused({"continue_final_message": True}, "continue_final_message", "{{ messages[0].content }}")


async def test_an_answer_that_goes_on_keeps_sentencepieces_space():
    tokenizer = sentencepiece_tokenizer()
    limits = ModelLimits(64, tokenizer.vocab_size)
    engines = Engines(tokenizer.encode("the sea", add_special_tokens=False))
    body = {"messages": [{"role": "user", "content": "by"}], "continue_final_message": True, "echo": True}
    generation, _ = await OpenAiService(engines, tokenizer, "m", limits, 4).chat(body)
    assert await generation.read() == {0: " the sea"}


@pytest.mark.parametrize(("last", "echoed"), [(BEGUN, "12 </s> 3 "), (BEGUN[:1], "")])
async def test_echo_begins_with_the_assistants_last_message(last, echoed):
    body = {"messages": last, "echo": True, "continue_final_message": True}
    generation, answer = await service().chat(body)
    texts = await generation.read()
    assert answer.whole()["choices"][0]["message"]["content"] == echoed + "ab"
    generation, answer = await service().chat({**body, "stream": True})
    texts = await generation.read()
    streamed = [chunk["choices"][0]["delta"].get("content") or "" for chunk in answer.chunks(texts)]
    assert "".join(streamed) == echoed + "ab"


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc"),
        ({"truncate_prompt_tokens": 30}, "abcdefgh"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 10}, "cdefgh"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 2}, "abcdefgh"),
    ],
)
@pytest.mark.parametrize("as_ids", [True, False])
async def test_prompts_are_truncated(fields, kept, as_ids):
    ids = byte_tokenizer().encode("abcdefgh")
    body = {"prompt": ids if as_ids else "abcdefgh", "echo": True, **fields}
    generation, answer = await service(max_model_len=16).completion(body)
    await generation.read()
    assert byte_tokenizer().decode(answer.prompt_ids[0]) == kept
    assert answer.whole()["choices"][0]["text"] == kept + "ab"
    assert answer.usage()["prompt_tokens"] == len(kept)


async def test_a_text_that_is_truncated_may_be_too_long_and_the_tokens_kept_may_not():
    _, answer = await service().completion({"prompt": "x" * 1000, "truncate_prompt_tokens": 5})
    assert len(answer.prompt_ids[0]) == 5
    with pytest.raises(ApiError, match="maximum context length is 64 tokens") as caught:
        await service().completion({"prompt": "x" * 1000, "truncate_prompt_tokens": 64})
    assert caught.value.code == "context_length_exceeded"
    assert await prompt({"truncate_prompt_tokens": 4}) == "ant\n"
    await refused({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens")


async def test_logprobs_may_name_token_ids():
    body = {"prompt": "x", "logprobs": 1, "return_tokens_as_token_ids": True}
    generation, answer = await service().completion(body)
    await generation.read()
    names = [f"token_id:{i}" for i in byte_tokenizer().encode("ab")]
    logprobs = answer.whole()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == names
    assert all(set(tops) <= {"token_id:0", name} for tops, name in zip(logprobs["top_logprobs"], names))
    body = {"messages": BEGUN, "logprobs": True, "return_tokens_as_token_ids": True}
    generation, answer = await service().chat(body)
    await generation.read()
    assert [entry["token"] for entry in answer.whole()["choices"][0]["logprobs"]["content"]] == names


async def test_the_answers_id_ends_with_the_requests():
    _, answer = await service().chat({"messages": BEGUN, "request_id": "mine-7"}, Caller(resumable=False))
    assert answer.id == "chatcmpl-mine-7"
    _, answer = await service().chat({"messages": BEGUN, "request_id": "mine-7", "stream": True})
    assert "mine" not in answer.id
    assert "visible ASCII" in await refused({"request_id": "a b"}, "request_id")


async def test_documents_go_where_the_template_has_a_place_for_them():
    template = "{{ documents | map(attribute='text') | join(',') if documents }}"
    documents = [{"title": "t", "text": "one"}, {"title": "u", "text": "two"}]
    assert await prompt({"documents": documents}, template, trust_request_documents=True) == "one,two"
    assert "trust_request_documents" in await refused({"documents": documents}, "documents", template)
    hidden = {"chat_template_kwargs": {"documents": documents}}
    assert "trust_request_documents" in await refused(hidden, "chat_template_kwargs.documents", template)
    assert "no place for it" in await refused({"documents": documents}, "documents", trust_request_documents=True)
    assert await prompt({"documents": []}) == await prompt({})
    assert "documents.1.text: must be a string" in await refused(
        {"documents": [{}, {"text": 5}]}, "documents.1.text", template
    )


THINKS = "{{ 'on' if enable_thinking else 'off' if enable_thinking is defined else 'own' }}"


@pytest.mark.parametrize(
    ("body", "template", "seen"),
    [
        ({}, THINKS, "own"),
        ({"reasoning_effort": "none"}, THINKS, "off"),
        ({"reasoning_effort": "high"}, THINKS, "on"),
        ({"thinking": {"type": "disabled"}}, THINKS, "off"),
        ({"thinking": {"type": "enabled"}}, THINKS, "on"),
        ({"enable_thinking": False}, THINKS, "off"),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, THINKS, "on"),
        ({"reasoning_effort": "high"}, "{{ reasoning_effort }}", "high"),
        ({"reasoning_effort": "none"}, "x", "x"),
        ({"thinking": {"type": "disabled"}}, "x", "x"),
    ],
)
async def test_reasoning_is_what_the_template_makes_of_it(body, template, seen):
    assert await prompt(body, template) == seen


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"enable_thinking": True}, "enable_thinking"),
    ],
)
async def test_reasoning_that_the_template_does_not_know_is_refused(body, param):
    assert "no place for it" in await refused(body, param)


async def test_a_template_of_the_requests_own_needs_the_setting():
    own = {"chat_template": "{{ messages | length }}{{ bos_token }}"}
    assert "trust_request_chat_template" in await refused(own, "chat_template")
    assert await prompt(own, trust_request_chat_template=True) == "2"
    for source in ("{% for %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "x" * 2**17):
        await refused({"chat_template": source}, "chat_template", trust_request_chat_template=True)
    await refused({"chat_template": "{{ [0] * 10 ** 9 }}"}, "messages", trust_request_chat_template=True)


async def test_names_of_writers_reach_a_template_that_has_a_place_for_them():
    messages = [{"role": "user", "content": "hi", "name": "Ada"}, {"role": "user", "content": "ho"}]
    template = "{% for m in messages %}{{ m.name + ': ' if m.name }}{{ m.content }};{% endfor %}"
    assert await prompt({"messages": messages}, template) == "Ada: hi;ho;"
    assert "Ada" not in await prompt({"messages": messages})


async def test_prompt_logprobs_of_a_chat():
    generation, answer = await service().chat({"messages": BEGUN, "prompt_logprobs": 1})
    await generation.read()
    whole = json.loads(json.dumps(answer.whole()))
    assert whole["prompt_logprobs"][0] is None
    assert whole["prompt_logprobs"][1].keys() >= {"0"}


class Params(Engines):
    """Keeps the parameters of what is submitted."""

    def submit(self, entry, deliver, fail):
        self.params = entry.params
        return super().submit(entry, deliver, fail)


async def test_words_are_forbidden_with_and_without_a_space():
    tokenizer = byte_tokenizer()
    engines = Params(tokenizer.encode("a"))
    service = OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
    generation, _ = await service.completion(
        {"prompt": "x", "bad_words": ["hello", " ab", "ab"], "allowed_token_ids": [3.0, 1]}
    )
    await generation.read()
    texts = ["hello", " hello", "ab", " ab"]
    assert engines.params.bad_token_seqs == tuple(tuple(tokenizer.encode(text)) for text in texts)
    assert engines.params.allowed_token_ids == (3, 1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"bad_words": ["ok", "abcdefghi"]}, "bad_words.1"),
        ({"bad_words": ["ok", " "]}, "bad_words.1"),
        ({"bad_words": ["ok", ""]}, "bad_words.1"),
        ({"bad_words": "ok"}, "bad_words"),
        ({"bad_words": ["x"] * 65}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [1, -1]}, "allowed_token_ids.1"),
        ({"allowed_token_ids": [1, 10**6]}, "allowed_token_ids.1"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
    ],
)
async def test_bounds_that_cannot_be_kept_are_refused_by_name(body, param):
    await refused(body, param)
