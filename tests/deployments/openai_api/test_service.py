"""The way from a request body to text, with the engines played by a list of tokens."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace

import pytest

from actors.text.tokenizer import Tokenizer
from cluster.api_errors import ApiError
from cluster.outputs import TokenLogprobs
from cluster.tenant import tenant_of
from deployments.metrics.request_events import RequestEvents
from deployments.openai_api.answers.text_offsets import prompt_offsets
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.service import Caller, OpenAiService
from tests.actors.text.tiny_tokenizer import byte_tokenizer, sentencepiece_tokenizer
from tests.deployments.openai_api.points import point_of
from tests.deployments.played_engines import Engines


@pytest.mark.parametrize("kind", ["completion", "chat"])
async def test_only_a_completion_begins_with_sentencepieces_space(kind):
    """A completion goes on in the middle of the prompt's text; a chat's answer is a text of its own."""
    tokenizer = sentencepiece_tokenizer()
    token_ids = tokenizer.encode("the sea", add_special_tokens=False)
    service = OpenAiService(Engines(token_ids), tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)
    if kind == "completion":
        generation, answer = await service.completion({"prompt": "by"})
    else:
        generation, answer = await service.chat({"messages": [{"role": "user", "content": "by"}]})
    assert await generation.read() == {0: " the sea" if kind == "completion" else "the sea"}
    assert answer.whole()["usage"]["completion_tokens"] == len(token_ids)


def service(engines: Engines, tokenizer: Tokenizer) -> OpenAiService:
    return OpenAiService(engines, tokenizer, "m", ModelLimits(64, tokenizer.vocab_size), 4)


async def test_sequences_are_found_by_the_name_that_a_client_gave_its_request():
    caller = Caller(x_request_id="mine-7" + "x" * 300)
    made = service(Engines([0]), byte_tokenizer())
    generation, answer = await made.completion({"prompt": "x", "n": 3}, caller)
    names = {choice.entry.request_id for choice in generation.choices}
    assert len(names) == 3
    assert all(name.startswith("mine-7xx") and len(name) < 100 for name in names)
    # Who takes another's name has a request of that name, and the other one keeps its own.
    stranger = tenant_of(b"key", b"secret", True, True)
    await made.completion({"prompt": "x"}, Caller(stranger, x_request_id=answer.id))
    for name in (answer.id, caller.x_request_id):
        assert {way["request"] for way in made.traces.of(name, caller.tenant.id)["sequences"]} == names


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt", "raise_exception"])
async def test_a_reserved_template_variable_is_refused_by_name(name):
    chat = service(Engines([0]), byte_tokenizer()).chat
    with pytest.raises(ApiError, match=name) as caught:
        await chat({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: 1}})
    assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")


@pytest.mark.parametrize(("as_text", "length"), [(True, 10), (False, 1)])
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "<|im_end|>"}]},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "<|im_end|>"}]}]},
        {"messages": [{"role": "user", "content": ""}], "chat_template_kwargs": {"documents": ["<|im_end|>"]}},
    ],
)
async def test_special_tokens_in_what_a_client_says_are_text_unless_the_setting_says_otherwise(body, as_text, length):
    tokenizer = byte_tokenizer("{{ messages[0].content }}{{ documents | join if documents }}")
    limits = ModelLimits(64, tokenizer.vocab_size)
    service = OpenAiService(Engines([0]), tokenizer, "m", limits, 4, ChatPrompts(tokenizer, as_text, False, True))
    _, answer = await service.chat(body)
    assert len(answer.prompt_ids[0]) == length
    assert tokenizer.decode(answer.prompt_ids[0], skip_special_tokens=False) == "<|im_end|>"


async def test_template_variables_reach_the_template():
    tokenizer = byte_tokenizer("{{ mood }}")
    body = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"mood": "ab"}}
    _, answer = await service(Engines([0]), tokenizer).chat(body)
    assert answer.prompt_ids == [tokenizer.encode("ab")]


@pytest.mark.parametrize(
    ("content", "param"),
    [("half \ud800", "messages.0.content"), ("\ud800" * 5000, "messages.0.content"), ("", "messages")],
)
async def test_messages_without_a_prompt_in_them_are_refused_by_name(content, param):
    with pytest.raises(ApiError) as caught:
        await service(Engines([0]), byte_tokenizer()).chat({"messages": [{"role": "user", "content": content}]})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "messages" in caught.value.message


async def test_a_prompt_that_is_no_unicode_is_named_with_its_index():
    with pytest.raises(ApiError) as caught:
        await service(Engines([0]), byte_tokenizer()).completion({"prompt": ["fine", "half \ud800"]})
    assert (caught.value.status, caught.value.param) == (400, "prompt.1")


async def test_the_likeliest_of_tokens_with_one_text_keeps_its_logprob():
    """Single bytes of characters are all shown as U+FFFD."""
    tokenizer = byte_tokenizer()
    first, second, third = (tokenizer.encode(char)[0] for char in "éλЖ")
    assert len({first, second, third}) == 3
    entry = TokenLogprobs(-3.0, 3, [first, second], [-0.5, -2.0])
    generation, answer = await service(Engines([third], entry), tokenizer).completion({"prompt": "x", "logprobs": 2})
    await generation.read()
    assert answer.whole()["choices"][0]["logprobs"]["top_logprobs"] == [{"\ufffd": -0.5}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
async def test_text_offsets_are_positions_in_the_answers_text(stream, echo):
    """Where a character spans tokens, and where a special token is skipped."""
    tokenizer = byte_tokenizer()
    end = tokenizer.encode("<|im_end|>")
    token_ids = [*tokenizer.encode("aéb"), *end, *tokenizer.encode("c")]
    assert len(token_ids) == 6
    body = {"prompt": "<s>hé.", "logprobs": 0, "echo": echo, "stream": stream}
    generation, answer = await service(Engines(token_ids), tokenizer).completion(body)
    texts = await generation.read()
    choice = (answer.chunks(texts)[0] if stream else answer.whole())["choices"][0]
    expected = [6, 7, 7, 8, 9, 9]
    assert choice["logprobs"]["text_offset"] == ([0, 3, 4, 4, 5] if echo else []) + expected
    assert ("<s>hé." if not echo else "") + choice["text"] == "<s>hé.aébc"


@pytest.mark.parametrize("stream", [False, True])
async def test_text_offsets_behind_token_ids_count_the_text_that_they_stand_for(stream):
    tokenizer = byte_tokenizer()
    prompt = tokenizer.encode("hé.")
    assert len(prompt) == 4
    body = {"prompt": [prompt, tokenizer.encode("x")], "logprobs": 0, "stream": stream}
    generation, answer = await service(Engines(tokenizer.encode("ab")), tokenizer).completion(body)
    texts = await generation.read()
    choices = [chunk["choices"][0] for chunk in answer.chunks(texts)] if stream else answer.whole()["choices"]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[3, 4], [1, 2]]


async def test_a_bos_before_the_prompt_takes_no_room_in_its_text():
    tokenizer = sentencepiece_tokenizer()
    bos = tokenizer.token_bytes(1).decode()
    assert bos == "<s>"
    ids = [1, *tokenizer.encode("the sea", add_special_tokens=False)]
    offsets = prompt_offsets(tokenizer, ids, "the sea")
    assert offsets[:2] == [0, 0]
    assert "the sea"[offsets[-1] :] == tokenizer.token_text(ids[-1])


@pytest.mark.parametrize("kind", ["completion", "chat"])
async def test_a_stream_begins_with_the_prompts_logprobs_of_the_whole_answer(kind):
    body = {"prompt": "by"} if kind == "completion" else {"messages": [{"role": "user", "content": "by"}]}
    answers = []
    for stream in (False, True):
        endpoints = service(Engines([1, 2]), byte_tokenizer())
        endpoint = endpoints.completion if kind == "completion" else endpoints.chat
        generation, answer = await endpoint({**body, "prompt_logprobs": 1, "n": 2, "stream": stream})
        texts = await generation.read()
        answers.append(answer.chunks(texts) if stream else answer.whole())
    whole, chunks = answers
    if kind == "completion":
        assert [chunk["choices"][0]["prompt_logprobs"] for chunk in chunks] == [
            choice["prompt_logprobs"] for choice in whole["choices"]
        ]
        assert len(whole["choices"][0]["prompt_logprobs"]) == 2
    else:
        assert [chunk.get("prompt_logprobs") for chunk in chunks] == [whole["prompt_logprobs"], None, None, None]
        assert len(whole["prompt_logprobs"]) == 2


@pytest.mark.parametrize(
    ("choices", "may_be_refused"),
    [
        ([{"token_ids": []}, {"token_ids": []}], True),
        ([{"token_ids": [1]}, {"token_ids": []}], False),
        ([{"token_ids": [], "finish_reason": "stop"}, {"token_ids": []}], False),
    ],
)
async def test_only_an_answer_that_has_begun_is_taken_up_past_a_full_queue(choices, may_be_refused):
    """A refusal of the first attempt is passed on (``EngineClient``); a client that has nothing yet is as good as new."""
    engines, submitted = Engines([1, 2]), []
    engines.events = RequestEvents()

    def submit(entry, deliver, fail):
        submitted.append(entry)
        return SimpleNamespace(entry=entry)

    engines.submit = submit
    body = {"prompt": "by", "n": 2, "seed": 1, "stream": True, "return_token_ids": True}
    tokenizer = byte_tokenizer()
    body["resume"] = {"fingerprint": "f", "choices": choices}
    point = point_of(body, [tokenizer.encode("by")])
    await service(engines, tokenizer).completion(body, Caller(resumed=point))
    assert submitted
    assert {entry.attempt == 0 for entry in submitted} == {may_be_refused}


async def test_a_template_that_writes_the_time_writes_that_of_the_answers_beginning():
    """Else an answer that is taken up on another day would go on behind another prompt."""
    tokenizer, engines = byte_tokenizer("{{ strftime_now('%d %H:%M:%S') }}"), Engines([1, 2])
    engines.events = RequestEvents()
    began = int(time.time()) - 50_000
    prompt = tokenizer.encode(datetime.datetime.fromtimestamp(began).strftime("%d %H:%M:%S"))
    body = {"messages": [{"role": "user", "content": "x"}], "seed": 1, "stream": True, "return_token_ids": True}
    body["resume"] = {"fingerprint": "f", "choices": [{"token_ids": [1]}]}
    point = point_of(body, [prompt])._replace(answer_id="chatcmpl-" + "0" * 32, created=began)
    _, answer = await service(engines, tokenizer).chat(body, Caller(resumed=point))
    assert answer.prompt_ids == [prompt]


def endpoint(kind: str, engines: Engines, tokenizer: Tokenizer, **options):
    """The coroutine that begins an answer to "by"."""
    chosen = service(engines, tokenizer)
    if kind == "completion":
        return chosen.completion({"prompt": "by", **options})
    return chosen.chat({"messages": [{"role": "user", "content": "by"}], **options})


def text_of(choice: dict) -> str:
    return (
        choice.get("text") or choice.get("delta", {}).get("content") or choice.get("message", {}).get("content") or ""
    )


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize("stop", [None, "z\ufffd"])
@pytest.mark.parametrize("skip", [1, 2, 3])
async def test_a_character_that_the_end_cuts_off_is_not_shown_and_its_tokens_are(kind, stop, skip):
    """Streamed as whole; a stop string that waits for its end is shown, and finds none in half a character."""
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("az🦜")[:-skip]
    asks_logprobs = {"logprobs": 0} if kind == "completion" else {"logprobs": True}
    options = {"return_token_ids": True, "stop": stop, **asks_logprobs}
    generation, answer = await endpoint(kind, Engines(tokens), tokenizer, **options)
    await generation.read()
    whole = answer.whole()
    generation, answer = await endpoint(kind, Engines(tokens), tokenizer, **options, stream=True)
    chunks = answer.chunks(await generation.read())
    (choice,) = whole["choices"]
    assert text_of(choice) == "".join(text_of(chunk["choices"][0]) for chunk in chunks) == "az"
    assert choice["token_ids"] == tokens == [t for chunk in chunks for t in chunk["choices"][0]["token_ids"]]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert whole["usage"]["completion_tokens"] == len(tokens)
    if kind == "completion":
        # Where the character would begin.
        assert choice["logprobs"]["text_offset"] == [2, 3] + [4] * (len(tokens) - 2)
    else:
        assert (
            bytes(byte for token in choice["logprobs"]["content"] for byte in token["bytes"]) == "az🦜".encode()[:-skip]
        )


@pytest.mark.parametrize("echo", [False, True])
async def test_a_character_that_the_prompts_ids_began_is_completed_by_the_answer(echo):
    """As when an answer that its length cut is continued with its tokens."""
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("hé🦜.")
    for cut in range(3, 8):
        generation, answer = await service(Engines(ids[cut:]), tokenizer).completion(
            {"prompt": ids[:cut], "echo": echo, "logprobs": 0}
        )
        await generation.read()
        (choice,) = answer.whole()["choices"]
        begun = "hé" if cut < 7 else "hé🦜"
        assert choice["text"] == ("hé🦜." if echo else "hé🦜.".removeprefix(begun))
        offsets = [0, 1, 1, 2, 2, 2, 2, 3]
        assert choice["logprobs"]["text_offset"] == (offsets if echo else offsets[cut:])


async def test_bytes_that_are_no_character_are_shown_as_replacements_where_text_follows():
    tokenizer = byte_tokenizer()
    broken = [*tokenizer.encode("a"), tokenizer.encode("é")[0], *tokenizer.encode("b")]
    generation, answer = await endpoint("completion", Engines(broken), tokenizer)
    await generation.read()
    assert answer.whole()["choices"][0]["text"] == "a\ufffdb"


async def test_the_role_comes_first_and_alone():
    generation, answer = await endpoint("chat", Engines([1, 2]), byte_tokenizer(), n=2, stream=True, seed=3)
    chunks = answer.chunks(await generation.read())
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 0, 1, 1]
    for opening, text in (chunks[:2], chunks[2:]):
        assert opening["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert opening["choices"][0]["finish_reason"] is None
        assert opening["seed"] == 3
        assert set(text["choices"][0]["delta"]) == {"content"}
    assert len(answer.event_ids) == 4


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize(
    ("options", "in_chunks", "at_the_end"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
        ({"include_usage": True, "continuous_usage_stats": None}, None, True),
        ({"include_usage": None}, False, False),
    ],
)
async def test_usage_comes_in_every_chunk_if_asked_for(kind, options, in_chunks, at_the_end):
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("abc")
    generation, answer = await endpoint(kind, Engines(tokens), tokenizer, n=2, stream=True, stream_options=options)
    chunks = answer.chunks(await generation.read())
    last = answer.usage_chunk()
    assert (last is not None) == at_the_end
    if in_chunks:
        # As vLLM counts: what the chunk's choice has by then.
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == [3, 3] if kind == "completion" else counts == [0, 3, 0, 3]
        assert all(chunk["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for chunk in chunks)
        assert last["usage"]["completion_tokens"] == 6
    elif in_chunks is None:
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)


async def test_an_event_that_is_taken_up_without_tokens_counts_no_cached_ones():
    """Its choice begins anew, and its prompt is looked up again."""
    engines = Engines([1, 2])
    deliver = engines.submit
    engines.submit = lambda entry, put, fail: deliver(entry, lambda d: put(d._replace(num_cached_tokens=2)), fail)
    generation, answer = await endpoint("chat", engines, byte_tokenizer(), stream=True)
    answer.chunks(await generation.read())
    assert [event_id.split(":")[2:4] for event_id in answer.event_ids] == [["0", "0"], ["2", "2"]]
