"""The library: ``LLM(model).generate(prompts)`` and ``.chat(conversations)`` in this process, with the tokens of the server.

A request goes through the same checks, templates and defaults as over HTTP, and then to an engine on a thread of this process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from actors.model_files.source import model_of
from actors.text.tokenizer import Tokenizer, load_tokenizer
from cluster.api_errors import ApiError
from cluster.config import DEFAULT_MODEL, LLMConfig
from cluster.errors import BiremeError, ConfigError, EngineDeadError, InvalidRequestError
from cluster.process.exit_order import first_at_exit
from cluster.sampling_params import SamplingParams
from deployments.answers.choice import Choice
from deployments.answers.generation import Generation
from deployments.offline.local_client import LocalClient
from deployments.offline.outputs import CompletionOutput, RequestOutput
from deployments.offline.settings import LLMSettings
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.answers.answer import OpenAiResponse
from deployments.openai_api.answers.chat_answer import ChatAnswer, finish_reason
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.requests.sampling_defaults import sampling_defaults
from deployments.openai_api.requests.structured_output import structured_outputs
from deployments.openai_api.service import OpenAiService
from deployments.start.app_arguments import settings_message
from deployments.start.prepare import progress_bar
from deployments.start.settings_names import instead_of, nearest

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompt = str | Sequence[int] | Mapping[str, Any]
Conversation = Sequence[Mapping[str, Any]]
_Start = Callable[[dict[str, Any]], Awaitable[tuple[Generation, OpenAiResponse]]]

_SETTINGS = ("model", *LLMSettings.__annotations__)
# The engine always has the next one waiting, and no more are kept in memory than that takes.
_ROUNDS_AHEAD = 2


_open: weakref.WeakSet[LLM] = weakref.WeakSet()


def _close_at_exit(llm: LLM) -> None:
    """An engine that still computes while Python ends meets a Paddle that is half gone, which may abort the process. Called when
    Paddle is loaded, which puts its own end off until then, too."""
    _open.add(llm)
    first_at_exit(_close_all)


def _close_all() -> None:
    for llm in list(_open):
        llm.close()


class LLM:
    """A model in this process.

    Args:
        model: the default's name, a GGUF file, a directory, or a Hugging Face id.
        settings: of an engine, by the names of the server's settings: ``max_num_seqs=32``, ``device="gpu"``. A type checker
            knows their names and types.

    Raises:
        ConfigError: a setting is unknown, out of range, or does not fit.
        ModelLoadError, OpBuildError: one message that says what to do.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **settings: Unpack[LLMSettings]) -> None:
        config = _config(model, settings)
        # Here, because it loads Paddle.
        from actors.engine.starting import start_engine

        source = model_of(config)
        self.tokenizer: Tokenizer = load_tokenizer(source)
        defaults = sampling_defaults(config, source)
        # Nobody else asks this engine, and ``_run`` bounds what waits.
        engine = start_engine(config.engine_config().model_copy(update={"max_queued_requests": 1_000_000}), "local")
        self._max_num_seqs = config.max_num_seqs
        self.model_id, self.fingerprint = engine.info.model_id, engine.info.fingerprint
        self.max_model_len = engine.info.max_model_len
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()
        _close_at_exit(self)
        self._client = self._call(_made(LocalClient, engine))
        self._service = OpenAiService(
            self._client,
            self.tokenizer,
            self.model_id,
            ModelLimits(engine.info.max_model_len, engine.info.vocab_size),
            config.max_choices,
            chats=ChatPrompts(self.tokenizer, config.special_tokens_in_messages == "text"),
            defaults=defaults,
            formats=AnswerFormats(self.tokenizer, config.tool_call_parser, config.reasoning_parser),
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        bad_words: Sequence[str] = (),
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt.

        Args:
            prompts: texts or lists of token ids, or vLLM's {"prompt": ...} and {"prompt_token_ids": ...}; one, or several.
            sampling_params: for all, or one a prompt; None: what the model recommends, with random seeds.
            n: sequences a prompt; the i-th has the seed of the first plus i.
            bad_words: texts that no answer has.
            progress: show how far it is; None: on a terminal.

        Returns:
            One output a prompt, in their order.

        Raises:
            InvalidRequestError: a prompt or parameter at fault; what was begun is given up.
        """
        is_text = isinstance(prompts, str | bytes | bytearray | memoryview | Mapping) or not isinstance(
            prompts, Sequence
        )
        several = not is_text and not isinstance(next(iter(prompts), None), int)
        listed: list[Any] = list(prompts) if several else [prompts]
        params = _one_each(sampling_params, len(listed))
        bodies = [
            {
                "prompt": _prompt(prompt, f"prompts[{i}]" if several else "prompts"),
                "n": n,
                "bad_words": list(bad_words),
                **_fields(one),
            }
            for i, (prompt, one) in enumerate(zip(listed, params))
        ]
        return self._run(self._start_completion, bodies, "prompts", progress)

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        bad_words: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation, through the model's chat template.

        Args:
            conversations: messages with ``role`` and ``content``; one conversation, or several.
            tools, tool_choice: as over HTTP; calls are in ``tool_calls`` of each sequence.
            chat_template_kwargs: further variables of the template.
            sampling_params, n, bad_words, progress: as for ``generate``.

        Raises:
            InvalidRequestError: as for ``generate``.
        """
        one = bool(conversations) and isinstance(conversations[0], Mapping)
        listed: list[Any] = [conversations] if one else list(conversations)
        bodies = [
            {
                "messages": [dict(message) for message in messages],
                "n": n,
                "bad_words": list(bad_words),
                "chat_template_kwargs": chat_template_kwargs or {},
                "tools": [dict(tool) for tool in tools],
                "tool_choice": tool_choice,
                **_chat_fields(params),
            }
            for messages, params in zip(listed, _one_each(sampling_params, len(listed)))
        ]
        return self._run(self._start_chat, bodies, "conversations", progress)

    def close(self) -> None:
        """Free the model; safe to call twice."""
        if not self._loop.is_closed():
            self._client.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _start_completion(self, body: dict[str, Any]) -> tuple[Generation, OpenAiResponse]:
        return await self._service.completion(body)

    async def _start_chat(self, body: dict[str, Any]) -> tuple[Generation, OpenAiResponse]:
        return await self._service.chat(body)

    def _run(
        self, start: _Start, bodies: list[dict[str, Any]], what: str, progress: bool | None
    ) -> list[RequestOutput]:
        if self._loop.is_closed():
            raise EngineDeadError("this LLM was closed")
        console = Console(stderr=True)
        console.quiet = not (console.is_terminal if progress is None else progress)
        with progress_bar(console, what.capitalize()) as report:
            return self._call(self._answers(start, bodies, what, lambda done: report("answered", done, len(bodies))))

    async def _answers(
        self, start: _Start, bodies: list[dict[str, Any]], what: str, answered: Callable[[int], None]
    ) -> list[RequestOutput]:
        outputs: dict[int, RequestOutput] = {}
        waiting = iter(enumerate(bodies))

        async def work() -> None:
            for i, body in waiting:
                try:
                    outputs[i] = await _answer(start, body)
                except ApiError as error:
                    raise _as_bireme_error(error, f"{what}[{i}]: " if len(bodies) > 1 else "") from None
                answered(len(outputs))

        width = max((body["n"] for body in bodies), default=1)
        count = max(1, -(-_ROUNDS_AHEAD * self._max_num_seqs // max(1, width)))
        workers = [asyncio.create_task(work()) for _ in range(min(count, len(bodies)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [outputs[i] for i in range(len(bodies))]

    def _call(self, coroutine: Any) -> Any:
        """Run it on the library's own loop: the caller may have one that runs, as notebooks do."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C among them
            future.cancel()
            raise


async def _made(kind: Callable[..., Any], *arguments: Any) -> Any:
    return kind(*arguments)


async def _answer(start: _Start, body: dict[str, Any]) -> RequestOutput:
    generation, answer = await start(body)
    try:
        while not generation.finished:
            await generation.read()
    finally:
        generation.close()
    outputs = [_output(choice, answer) for choice in generation.choices]
    prompt = body.get("prompt")
    return RequestOutput(
        prompt if isinstance(prompt, str) else None,
        answer.prompt_ids[0],
        outputs,
        answer.seed,
        generation.fingerprint,
        answer.num_cached_tokens(),
        generation.choices[0].output.prompt_logprobs,
    )


def _output(choice: Choice, answer: OpenAiResponse) -> CompletionOutput:
    output = choice.output
    text, reason, reasoning, calls = output.text, output.finish_reason, "", []
    if isinstance(answer, ChatAnswer):
        message = answer.message(choice)
        text, reasoning = message["content"] or "", message.get("reasoning") or ""
        calls = message.get("tool_calls", [])
        reason = finish_reason(output, len(calls))
    return CompletionOutput(
        choice.index, text, output.token_ids, reason, output.stop_reason, output.logprobs, reasoning, calls
    )


def _config(model: str, settings: LLMSettings) -> LLMConfig:
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise ConfigError(f"{unknown[0]} {_why_not(unknown[0])}", unknown[0])
    try:
        return LLMConfig.model_validate({"model": model, **settings})
    except ValidationError as error:
        raise ConfigError(settings_message(error)) from None


def _why_not(name: str) -> str:
    """What a name is that the library has no setting of, and what to do instead."""
    the_library_has = f"the library has {', '.join(sorted(_SETTINGS))}"
    if name in LLMConfig.model_fields:
        return f"is a setting of the server; {the_library_has}"
    if instead := instead_of(name):
        return f"is not a setting: {instead}"
    return f"is not a setting{nearest(name, _SETTINGS) or f'; {the_library_has}'}"


def _prompt(prompt: Any, where: str) -> str | list[int]:
    """A text or token ids, also where they are vLLM's mapping of one of the two.

    Raises:
        InvalidRequestError: it is something else.
    """
    if isinstance(prompt, Mapping) and prompt.keys() in ({"prompt"}, {"prompt_token_ids"}):
        (prompt,) = prompt.values()
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping | bytes | bytearray | memoryview) or not isinstance(prompt, Sequence):
        raise InvalidRequestError(
            f'{where}: must be a text, a list of token ids, {{"prompt": TEXT}} or {{"prompt_token_ids": IDS}}', "prompt"
        )
    return list(prompt)


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequestError(f"sampling_params has {len(params)} entries for {count} prompts", "sampling_params")
    return list(params)


def _fields(params: SamplingParams | None) -> dict[str, Any]:
    """As a request names them; ``None`` is what the model recommends."""
    if params is None:
        return {}
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    fields["stop"], fields["stop_token_ids"] = list(params.stop), list(params.stop_token_ids)
    fields["stop_token_seqs"] = [list(sequence) for sequence in params.stop_token_seqs]
    fields["allowed_token_ids"] = list(params.allowed_token_ids) or None
    if (grammar := fields.pop("grammar")) is not None:
        fields["structured_outputs"] = structured_outputs(grammar)
    del fields["reasoning_marks"]  # follow from the model
    if fields.pop("bad_token_seqs"):
        raise InvalidRequestError("bad_token_seqs is made by the tokenizer: give the texts as bad_words", "bad_words")
    return fields


def _chat_fields(params: SamplingParams | None) -> dict[str, Any]:
    fields = _fields(params)
    num_top = fields.pop("logprobs", None)
    return fields if num_top is None else {**fields, "logprobs": True, "top_logprobs": num_top}


def _as_bireme_error(error: ApiError, where: str) -> BiremeError:
    kind = InvalidRequestError if error.status < 500 else EngineDeadError
    return kind(where + error.message, error.param, error.code)
