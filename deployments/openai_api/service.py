"""The two generating endpoints: from a request body to a running generation and its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from actors.text.detokenizer import IncrementalDetokenizer
from actors.text.tokenizer import Tokenizer
from cluster.api_errors import ApiError, bad_request, shown
from cluster.errors import InvalidRequestError
from cluster.grammar import Grammar
from cluster.journal import JournalEntry
from cluster.reasoning import ReasoningMarks
from cluster.tenant import NOBODY, Tenant
from deployments.answers.choice import Choice
from deployments.answers.generation import Generation
from deployments.answers.live_answers import LiveAnswers
from deployments.answers.request_line import RequestLines
from deployments.answers.request_traces import RequestTraces
from deployments.answers.sequence_output import SequenceOutput, TextEnd
from deployments.http.body import parse_json
from deployments.http.connection import Peer, while_connected
from deployments.http.large_requests import SMALL_BYTES, large_requests
from deployments.metrics.ingress_metrics import SequenceTimes
from deployments.metrics.request_events import RESUMED
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.answers.answer import OpenAiResponse
from deployments.openai_api.answers.answer_digest import AnswerDigest
from deployments.openai_api.answers.chat_answer import ChatAnswer
from deployments.openai_api.answers.completion_answer import CompletionAnswer
from deployments.openai_api.answers.event_ids import EventIds, ResumePoint
from deployments.openai_api.requests.chat_prompt import ChatPrompts, echoed
from deployments.openai_api.requests.messages import TemplatedChat
from deployments.openai_api.requests.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    parse_request,
)
from deployments.openai_api.requests.sampling import (
    ModelLimits,
    asked_max_tokens,
    assign_seed,
    bad_token_seqs,
    check_prompt_ids,
    check_prompt_len,
    check_prompt_logprobs,
    context_exceeded,
    engine_seed,
    sampling_params,
    truncated,
)
from deployments.openai_api.requests.sampling_defaults import SamplingDefaults
from deployments.openai_api.requests.structured_output import grammar_of
from deployments.openai_api.requests.validation import UnknownFields
from deployments.openai_api.resume import check_content, check_resume, resume_choices
from deployments.parsers.first_call import FirstCall
from deployments.routing.sequence_client import SequenceClient


class Caller(NamedTuple):
    """Who asks, and what its connection says.

    Attributes:
        tenant: whom the request belongs to.
        peer: takes turns with others where the request is large.
        resumed: the event that it goes on after; None for a request from the beginning.
        resumable: events of a stream get ids.
        trace_id: of the trace that it is part of; empty if its client has none.
        x_request_id: under which logs know the request.
        waited_s: for its turn to begin, which counts as time of the answer.
    """

    tenant: Tenant = NOBODY
    peer: Peer = Peer()
    resumed: ResumePoint | None = None
    resumable: bool = True
    trace_id: str = ""
    x_request_id: str = ""
    waited_s: float = 0.0


_ANYBODY = Caller()
# Of a request's name, in the names of its sequences.
_NAME_CHARS = 64
_Prepare = Callable[[Any, Caller, float], "tuple[Generation, OpenAiResponse]"]


class _NoRoomError(Exception):
    """Sequences were refused while their request was prepared, be it on another thread, where nothing is counted."""

    def __init__(self, error: ApiError, num_sequences: int, num_prompt_tokens: int) -> None:
        self.error = error
        self.num_sequences = num_sequences
        self.num_prompt_tokens = num_prompt_tokens


class OpenAiService:
    """Starts generations for validated requests.

    Attributes:
        model_names: under which clients ask for the model, ``model_id`` first.
        traces: of the newest requests.

    Args:
        model_id: name of the model in answers.
        max_choices: most sequences (prompts times n) of one request.
        chats: renders and encodes chats; by default with nothing but the model's own template.
        defaults: what a request has where it says nothing.
        unknown_fields: whether a field that nobody knows is refused, or left out.
        lines: takes each request once it is over.
        formats: what is looked for in the answers of chats; by default what the model's own template tells of.
        aliases: further names under which clients may ask for the model.
    """

    def __init__(
        self,
        client: SequenceClient,
        tokenizer: Tokenizer,
        model_id: str,
        limits: ModelLimits,
        max_choices: int,
        chats: ChatPrompts | None = None,
        defaults: SamplingDefaults | None = None,
        unknown_fields: UnknownFields = "refuse",
        lines: RequestLines | None = None,
        formats: AnswerFormats | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        self.model_id = model_id
        self.model_names = tuple(dict.fromkeys((model_id, *aliases)))
        self.defaults = defaults or SamplingDefaults()
        self.set_limits(limits)
        self._client = client
        self._tokenizer = tokenizer
        self._max_choices = max_choices
        self._chats = chats or ChatPrompts(tokenizer)
        self._formats = formats or AnswerFormats(tokenizer)
        self.unknown_fields = unknown_fields
        self._live = LiveAnswers()
        self.traces = RequestTraces()
        self._lines = lines or RequestLines(model_id)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self._tokenizer

    def set_limits(self, limits: ModelLimits) -> None:
        """What the model allows from now on."""
        self.limits = limits._replace(default_max_tokens=self.defaults.max_tokens)

    def resume_point(self, last_event_id: str | None, tenant: Tenant = NOBODY) -> ResumePoint | None:
        """The event that a request with this header goes on after; None for one from the beginning.

        Raises:
            ApiError: 400, it is no event's id that this cluster gave to ``tenant``, or too old.
        """
        return None if last_event_id is None else EventIds(tenant.event_key).read(last_event_id)

    async def completion(self, body: Any, caller: Caller = _ANYBODY) -> tuple[Generation, OpenAiResponse]:
        """Start a completion; ``body`` is the decoded JSON, or a bytearray that holds it, which is emptied.

        Raises:
            ApiError: the request is refused; nothing was started.
            ClientGoneError: nobody waits for it any more; nothing was started.
        """
        return await self._start(self._completion, body, caller)

    async def chat(self, body: Any, caller: Caller = _ANYBODY) -> tuple[Generation, OpenAiResponse]:
        """Start a chat completion; ``body`` as for ``completion``.

        Raises:
            ApiError: the request is refused; nothing was started.
            ClientGoneError: nobody waits for it any more; nothing was started.
        """
        return await self._start(self._chat, body, caller)

    async def _start(self, prepare: _Prepare, body: Any, caller: Caller) -> tuple[Generation, OpenAiResponse]:
        received, begun = time.monotonic() - caller.waited_s, time.time()
        metrics = self._client.metrics
        try:
            if isinstance(body, bytearray) and len(body) > SMALL_BYTES:
                peer = caller.peer
                preparing = large_requests.prepare(peer.name, len(body), prepare, body, caller, received)
                generation, answer = await while_connected(peer.receive, preparing)
            else:
                generation, answer = prepare(body, caller, received)
        except _NoRoomError as refused:
            metrics.count_refused(refused.num_sequences, refused.num_prompt_tokens)
            raise refused.error from None
        num_choices = answer.request.n
        for choice in generation.choices[::num_choices]:
            metrics.count_params(choice.entry.params.max_tokens, num_choices)
        resume, answer.request.resume = answer.request.resume, None
        prepared = time.time()
        for choice in generation.choices:
            choice.entry.marks |= {"begun": begun, "prepared": prepared}
        generation.start()
        self.traces.begin((answer.id, caller.trace_id, caller.x_request_id), caller.tenant, list(generation.choices))
        generation.when_closed.append(lambda: self._lines.when_over(answer.id, caller.x_request_id, generation.choices))
        if answer.can_be_taken_up:
            self._live.begin(answer.id, generation)
        if resume is not None:
            choices, num_tokens = generation.choices, resume.num_tokens
            self._client.events.record(RESUMED, choices[0].entry.request_id, choices=len(choices), tokens=num_tokens)
        return generation, answer

    def _completion(self, body: Any, caller: Caller, received: float) -> tuple[Generation, OpenAiResponse]:
        request = parse_request(CompletionRequest, _decoded(body), self.defaults.values, self.unknown_fields)
        check_resume(request, caller.resumed, CompletionAnswer.id_prefix)
        self.check_model(request.model)
        prompts = request.prompt.items
        self._check_choices(len(prompts) * request.n)
        # Echo repeats it, and text offsets count from its beginning.
        shows_prompt = request.echo or request.logprobs is not None
        prompt_ids, prompt_texts = [], []
        for i, prompt in enumerate(prompts):
            param = request.prompt.name(i)
            if isinstance(prompt, str):
                encoded = self._encode(prompt, request, param)
                ids = truncated(encoded, request, self.limits)
                is_whole = ids is encoded
                if not ids:
                    raise bad_request(f"{param} has no tokens; write at least one character", param)
            else:
                ids, is_whole = prompt, False
                ids = truncated(ids, request, self.limits)
                check_prompt_len(len(ids), param, self.limits.max_model_len)
                check_prompt_ids(ids, param, self.limits.vocab_size)
            prompt_ids.append(ids)
            if not shows_prompt:
                prompt_texts.append("")
            else:
                prompt_texts.append(prompt if isinstance(prompt, str) and is_whole else self._text_of(ids))
        request.prompt = None  # the answer keeps the request, and has no use for it
        generation, options = self._generation(request, prompt_ids, caller, received, grammar_of(request))
        answer = CompletionAnswer(
            request,
            self.model_id,
            self._tokenizer,
            generation,
            prompt_ids,
            **options,
            created=_beginning(caller.resumed),
            prompt_texts=prompt_texts,
            defaults=self.defaults,
        )
        return generation, answer

    def _chat(self, body: Any, caller: Caller, received: float) -> tuple[Generation, OpenAiResponse]:
        request = parse_request(ChatCompletionRequest, _decoded(body), self.defaults.values, self.unknown_fields)
        check_resume(request, caller.resumed, ChatAnswer.id_prefix)
        self.check_model(request.model)
        self._check_choices(request.n)
        # A template may write the date, which must not be another one when the answer is taken up.
        created = _beginning(caller.resumed)
        encoded = self._chats.encode(request, created, lambda text: self._check_length(text, request, "messages"))
        prompt_ids = [truncated(encoded, request, self.limits)]
        if not prompt_ids[0]:
            raise bad_request("messages make a prompt without tokens; write at least one character", "messages")
        echo = echoed(request.messages) if request.echo else ""
        grammar = grammar_of(request)
        form = self._formats.of(request, prompt_ids[0], grammar)
        grammar, marks = self._formats.grammar(request, form, grammar), self._formats.marks(request, form)
        # As above.
        request.messages, request.documents, request.tools = [], [], []
        request.chat_template_kwargs, request.chat_template = {}, None
        # A grammar makes one call itself.
        is_cut = form.tools is not None and not request.parallel_tool_calls and grammar is None
        generation, options = self._generation(
            request, prompt_ids, caller, received, grammar, self._formats.shown_tokens(form), marks,
            end=partial(FirstCall, form) if is_cut else None,
        )  # fmt: skip
        answer = ChatAnswer(
            request, self.model_id, self._tokenizer, generation, prompt_ids, **options, created=created,
            defaults=self.defaults, echo=echo, form=form,
        )  # fmt: skip
        return generation, answer

    def _text_of(self, prompt_ids: list[int]) -> str:
        """What the ids of a prompt decode to, without a character that the answer may complete."""
        text = self._tokenizer.decode(prompt_ids)
        is_cut = IncrementalDetokenizer(self._tokenizer, continues=prompt_ids).is_amid_character
        return text[:-1] if is_cut else text

    def check_model(self, model: str | None) -> None:
        """Raise ApiError 404 for a model that is not served."""
        if model is not None and model not in self.model_names:
            raise ApiError(
                404,
                f"the model {shown(model[:80])} does not exist; this server has {', '.join(map(shown, self.model_names))}",
                param="model",
                code="model_not_found",
            )

    def tokenize_text(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of a completion's prompt, however long.

        Raises:
            ApiError: it is not valid Unicode.
        """
        return self._ids_of(text, add_special_tokens, "prompt")

    def tokenize_chat(self, request: TemplatedChat) -> list[int]:
        """The token ids of a chat's prompt, however long, as a chat completion has them.

        Raises:
            ApiError: the model's template does not take the messages.
        """
        return self._chats.encode(request, time.time(), check=lambda text: None)

    def _check_choices(self, count: int) -> None:
        if count > self._max_choices:
            raise bad_request(
                f"prompts times n is {count}; at most {self._max_choices} sequences are allowed in one request", "n"
            )

    def _encode(self, text: str, request: CompletionRequest, param: str) -> list[int]:
        self._check_length(text, request, param)
        return self._ids_of(text, request.add_special_tokens, param)

    def _ids_of(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except InvalidRequestError as error:  # the tokenizer does not know where the text came from
            raise bad_request(f"{param}: {error.message}", param, error.code) from None

    def _check_length(self, text: str, request: GenerationRequest, param: str) -> None:
        if request.truncate_prompt_tokens is not None:
            return
        most = self.limits.max_model_len - 1
        if self._tokenizer.floor.exceeds(text, most):
            raise context_exceeded(
                self.limits.max_model_len,
                f"your {param} is a text of {len(text)} characters, which are more tokens than that. Shorten the {param}.",
                param,
            )

    def _generation(
        self,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        caller: Caller,
        received: float,
        grammar: Grammar | None,
        shown: frozenset[int] = frozenset(),
        marks: ReasoningMarks | None = None,
        end: Callable[[], TextEnd] | None = None,
    ) -> tuple[Generation, dict[str, Any]]:
        """The sequences of a request, not yet submitted, and what its answer is built with.

        Args:
            grammar: that the answers follow.
            shown: special tokens that are part of their text.
            marks: between which a budget counts their tokens.
            end: makes what tells where the text of one is complete.
        """
        seed, tenant, resumed = assign_seed(request), caller.tenant, caller.resumed
        cache_salt = tenant.cache_salt(request.cache_salt)
        resume = request.resume
        if resume is not None and len(resume.choices) != len(prompts) * request.n:
            raise bad_request(
                f"resume.choices must have {len(prompts) * request.n} entries, one a choice, got {len(resume.choices)}",
                "resume.choices",
            )
        events = None
        if request.stream and caller.resumable:
            key, max_tokens = tenant.event_key, asked_max_tokens(request)[1]
            events = EventIds(key), AnswerDigest(key, prompts, max_tokens, request.n)
        if resume is not None:
            assert (
                resumed is not None and events is not None
            )  # as ``check_resume`` has seen, and only streams are resumed
            check_content(resume, resumed, events[1])
        else:
            # ``Generation.start`` asks again and decides, where the sequences are submitted at once and so have their places:
            # until then others may come, as this runs on another thread for large requests. What is refused now costs no work.
            num_sequences = len(prompts) * request.n
            try:
                self._client.check_room(num_sequences, tenant.id)
            except ApiError as error:
                raise _NoRoomError(error, num_sequences, request.n * sum(map(len, prompts))) from None
        choices: list[Choice] = []
        bad_seqs = bad_token_seqs(request.bad_words, self._tokenizer)
        for prompt_ids in prompts:
            first = sampling_params(request, len(prompt_ids), seed, self.limits, bad_seqs, grammar, marks)
            check_prompt_logprobs(prompts, request.n, first.prompt_logprobs, self.limits)
            for i in range(request.n):
                params = first.with_seed(engine_seed(seed + i)) if i else first
                entry = JournalEntry(
                    request_id=_sequence_id(caller.x_request_id),
                    prompt_token_ids=prompt_ids,
                    params=params,
                    subscriber=self._client.subscriber,
                    priority=request.priority,
                    cache_salt=cache_salt,
                    tenant=tenant.id,
                )
                # A completion goes on with the prompt's text; a chat's answer is a text of its own, unless it is to go on.
                goes_on = isinstance(request, CompletionRequest) or (
                    isinstance(request, ChatCompletionRequest) and request.continue_final_message
                )
                continues = prompt_ids if goes_on else None
                detokenizer = IncrementalDetokenizer(
                    self._tokenizer, request.skip_special_tokens, continues=continues, shown=shown
                )
                output = SequenceOutput(
                    detokenizer, params, self._tokenizer.eos_token_ids, request.include_stop_str_in_output,
                    end=None if end is None else end(),
                )  # fmt: skip
                times = SequenceTimes(self._client.metrics, received, len(prompt_ids))
                choices.append(Choice(len(choices), entry, output, times))
        if resume is not None:
            resume_choices(resume, choices, self.limits.vocab_size)
            fingerprint = self.defaults.engine_fingerprint(resume.fingerprint)
            for choice in choices:
                choice.entry.fingerprint = fingerprint
        return Generation(self._client, choices), {"seed": seed, "events": events, "resumed": resumed}


def _sequence_id(x_request_id: str) -> str:
    """Used once. The request's name begins it, so that every line of a log about it is found by that."""
    unique = uuid.uuid4().hex
    return f"{x_request_id[:_NAME_CHARS]}-{unique[:16]}" if x_request_id else unique


def _beginning(resumed: ResumePoint | None) -> int:
    """Of an answer that is begun or taken up now, in seconds since the epoch."""
    return int(time.time()) if resumed is None else resumed.created


def _decoded(body: Any) -> Any:
    if not isinstance(body, bytearray):
        return body
    decoded = parse_json(body)
    body.clear()
    return decoded
