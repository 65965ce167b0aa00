"""Every field of a request that OpenAI's or vLLM's clients send, and what this server makes of it: one row each.

The checks of ``protocol``, /openapi.json and the tables of the docs derive from it. A field that is null counts as absent, in
every object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from cluster.grammar import MAX_GRAMMAR_CHARS

MAX_SHORT_TEXT = 1024
ShortText = Annotated[str, StringConstraints(max_length=MAX_SHORT_TEXT)]
_LongText = Annotated[str, StringConstraints(max_length=MAX_GRAMMAR_CHARS)]

# Where a field stands in a request.
COMPLETION = "completion"
CHAT = "chat"
MESSAGE = "messages"
CONTENT_PART = "messages.content"
TOOL_CALL = "messages.tool_calls"
CALLED_FUNCTION = "messages.tool_calls.function"
RESPONSE_FORMAT = "response_format"
RESPONSE_SCHEMA = "response_format.json_schema"
STRUCTURED_OUTPUTS = "structured_outputs"
TOOL = "tools"
TOOL_FUNCTION = "tools.function"
CHOSEN_TOOL = "tool_choice"
CHOSEN_FUNCTION = "tool_choice.function"
ALLOWED_TOOLS = "tool_choice of allowed tools"
OFFERED_TOOLS = "tool_choice.allowed_tools"
STREAM_OPTIONS = "stream_options"
THINKING = "thinking"
RESUME = "resume"
RESUMED_CHOICE = "resume.choices"
TOKENIZE = "tokenize"
TOKENIZE_CHAT = "tokenize of messages"
DETOKENIZE = "detokenize"
_BOTH = (COMPLETION, CHAT)


class Verdict(Enum):
    """What becomes of a field."""

    WORKS = "works"
    NO_OP = "no-op"  # its values are checked, and change nothing
    REFUSED = "refused"  # any value that asks for something


@dataclass(frozen=True, slots=True, eq=False)
class FieldRow:
    """One field.

    Attributes:
        places: where it may stand.
        reason: what it does, why it changes nothing, or what the server cannot do; half a sentence.
        takes: of a no-op, the type of its values.
        harmless: values that ask for nothing: those of a refused field that are accepted, of another one that have not its type.
    """

    places: tuple[str, ...]
    name: str
    verdict: Verdict
    reason: str
    takes: Any = None
    harmless: tuple[Any, ...] = ()


def _works(places: Iterable[str], empty: tuple[Any, ...] = (), /, **reasons: str) -> list[FieldRow]:
    return [FieldRow(tuple(places), name, Verdict.WORKS, reason, None, empty) for name, reason in reasons.items()]


def _no_op(places: Iterable[str], takes: Any, reason: str, *names: str) -> list[FieldRow]:
    return [FieldRow(tuple(places), name, Verdict.NO_OP, reason, takes) for name in names]


def _refused(places: Iterable[str], reason: str, **harmless: tuple[Any, ...]) -> list[FieldRow]:
    return [FieldRow(tuple(places), name, Verdict.REFUSED, reason, None, values) for name, values in harmless.items()]


_STRUCTURED = "the form of an answer is told by response_format or structured_outputs"
_TOOLS = "tools are of chats"
_OLD_TOOLS = "OpenAI's older form of tools and tool_choice"
TEXT_ONLY = "this model takes and writes text only"
_REASONING = "reasoning is of chats"
# What OpenAI's client has in an answer's message, and sends back with it.
_EMPTY: tuple[Any, ...] = ([], {}, "")
_ONE_SERVER = "requests are not split between servers"

FIELDS: tuple[FieldRow, ...] = (
    *_works(
        _BOTH,
        model="name of the model; may be left out",
        max_tokens="most tokens of the answer",
        min_tokens="fewest tokens of the answer",
        temperature="0 takes the most likely token",
        top_p="share of the probability to draw from",
        top_k="number of most likely tokens to draw from; 0 or -1: all",
        min_p="least share of the best probability to draw from",
        presence_penalty="of tokens that were generated",
        frequency_penalty="of tokens that were generated, for each time",
        repetition_penalty="of tokens of prompt and answer",
        logit_bias="token id to what its logit gets",
        seed="fixes every random draw; an answer tells the seed that it had",
        n="choices of each prompt",
        best_of="must equal n: all choices are returned",
        stop="strings that end the answer",
        include_stop_str_in_output="the answer ends with the stop string",
        stop_token_ids="tokens that end the answer",
        stop_token_seqs="sequences of tokens that end the answer",
        allowed_token_ids="the only tokens that the answer may have",
        bad_words="texts that the answer may not have, as they are and behind a space, in the tokens that these have alone",
        ignore_eos="the model's own end does not end the answer",
        response_format="the answer is a JSON object, or JSON that a schema describes; strict is always meant",
        structured_outputs="json, json_object, regex, choice or grammar (Lark or EBNF) that the answer follows",
        guided_json="older name of structured_outputs.json",
        guided_regex="older name of structured_outputs.regex",
        guided_choice="older name of structured_outputs.choice",
        guided_grammar="older name of structured_outputs.grammar",
        guided_whitespace_pattern="older name of structured_outputs.whitespace_pattern",
        stream="answer in chunks",
        stream_options="usage in chunks",
        logprobs="log-probabilities of the tokens; a number of alternatives for completions, true for chats",
        prompt_logprobs="the same for the prompt, by token id",
        return_token_ids="token ids of prompt and answer",
        return_tokens_as_token_ids="log-probabilities name their tokens token_id:N",
        truncate_prompt_tokens="most tokens of the prompt that are kept; -1: as many as fit",
        truncation_side="left keeps the last tokens, right the first",
        request_id="the answer's id ends with it; the ids of a resumable stream are the server's",
        skip_special_tokens="false: special tokens are part of the text",
        priority="lower ones go first",
        cache_salt="keeps cached prefixes apart from those of requests with another one",
        add_special_tokens="what the tokenizer puts around a prompt, BOS for one",
        resume="what a client has of an answer whose connection broke",
    ),
    *_works([COMPLETION], prompt="text, token ids, or a list of either", echo="the answer begins with the prompt"),
    *_works(
        [CHAT],
        messages="the conversation, rendered through the model's chat template",
        max_completion_tokens="OpenAI's newer name of max_tokens",
        top_logprobs="number of alternatives",
        add_generation_prompt="the prompt ends where the assistant's turn begins",
        continue_final_message="the answer goes on with the last message",
        echo="the answer begins with the last message, if that is the assistant's",
        documents="variable of the chat template, where the setting trust_request_documents allows it",
        reasoning_effort="variable of the chat template; none where it has no place for it",
        enable_thinking="variable of the chat template; false where it has no place for it",
        thinking="the same in other words: type enabled or disabled",
        chat_template="a template instead of the model's, where the setting trust_request_chat_template allows it",
        chat_template_kwargs="variables of the chat template",
        include_reasoning="false: answers are without the model's reasoning",
        parallel_tool_calls="false: at most one call, which ends the answer",
    ),
    *_works([CHAT], ([],), tools="functions that the model may call, where the chat template has a place for them"),
    *_works(
        [CHAT],
        (-1,),
        thinking_token_budget="most tokens of reasoning, then its end is forced; -1: as many as the model likes",
        thinking_budget="the same under Qwen's name",
    ),
    *_works([CHAT], (), tool_choice="none, auto, required, the function that is called, or the tools that are offered"),
    *_no_op(
        _BOTH, ShortText, "names somebody or something of the client's",
        "user", "safety_identifier", "session_id", "prompt_cache_key",
    ),
    *_no_op(_BOTH, Annotated[dict[ShortText, ShortText], Field(max_length=16)], "nothing is kept of a request", "metadata"),
    *_no_op(_BOTH, bool, "nothing is kept of a request", "store"),
    *_no_op(
        _BOTH, Literal["auto", "default", "flex", "scale", "priority", "fast"],
        "there is one tier; the field priority orders requests", "service_tier",
    ),
    *_no_op(_BOTH, bool, "prefixes are cached wherever the setting enable_prefix_caching allows it", "cache_prompt"),
    *_no_op(
        _BOTH, Literal["in-memory", "in_memory", "24h"], "cached prefixes stay as long as there is room",
        "prompt_cache_retention",
    ),
    *_no_op(_BOTH, dict[str, Any], "prefixes are cached without breakpoints", "prompt_cache_options"),
    *_no_op(_BOTH, bool, "the text is that of the tokens, with the spaces that they have", "spaces_between_special_tokens"),
    *_no_op(_BOTH, ShortText, "there is one library for all grammars", "guided_decoding_backend"),
    *_no_op(_BOTH, bool, "of answers that have no such part", "separate_reasoning", "stream_reasoning"),
    *_no_op([COMPLETION], bool, "of answers that have no such part", "include_reasoning"),
    *_no_op(_BOTH, bool, "of other endpoints", "return_token_offsets", "return_mm_kwargs"),
    *_no_op(_BOTH, Annotated[int, Field(ge=0)], "of answers that have no such part", "routed_experts_prompt_start"),
    *_no_op(_BOTH, Annotated[int, Field(ge=1)], "chunks come as tokens do", "stream_interval"),
    *_refused(_BOTH, _STRUCTURED, grammar=("",), json_schema=(), regex=(), ebnf=(), structural_tag=()),
    *_refused([COMPLETION], _TOOLS, tools=([],), tool_choice=("none", "auto")),
    *_refused(_BOTH, _OLD_TOOLS, functions=([],), function_call=("none", "auto")),
    *_refused(_BOTH, TEXT_ONLY, modalities=(["text"], []), audio=(), media_io_kwargs=({},), mm_processor_kwargs=({},)),
    *_refused(_BOTH, "this server does not search beams", use_beam_search=(False,), length_penalty=(1,), early_stopping=(False,)),
    *_refused(_BOTH, "this server runs one decoder, without a predicted output", prediction=()),
    *_refused(_BOTH, "this server does not search the web", web_search_options=()),
    *_refused(_BOTH, "this server does not moderate", moderation=()),
    *_refused(_BOTH, "this model has no measure of its length", verbosity=("medium",)),
    *_refused(
        [COMPLETION], _REASONING,
        reasoning_effort=("none",), thinking=({"type": "disabled"}, {"type": "disabled", "budget_tokens": 0}),
        enable_thinking=(False,), thinking_token_budget=(-1,), thinking_budget=(-1,),
    ),
    *_refused(_BOTH, "this server runs no code of its clients", logits_processors=([],)),
    *_refused(
        _BOTH, "chats have reasoning_effort and enable_thinking", reasoning=({"effort": "none"}, {"enabled": False}),
    ),
    *_refused([CHAT], "return_token_ids brings the tokens of the prompt", return_prompt_text=(False,)),
    *_refused(_BOTH, "this server does not watermark", watermarking=(False,)),
    *_refused(
        _BOTH, "this server does not look for repetitions; there are repetition_penalty and stop",
        repetition_detection=({}, {"max_pattern_size": 0}),
    ),
    *_refused(_BOTH, "this server reports the most likely tokens, not chosen ones", logprob_token_ids=([],)),
    *_refused(_BOTH, _ONE_SERVER, kv_transfer_params=({},), ec_transfer_params=({},)),
    *_refused(_BOTH, "this server has no extensions", vllm_xargs=({},)),
    *_refused(
        _BOTH, "answers are tokens and their log-probabilities", return_hidden_states=(False,), return_routed_experts=(False,),
    ),
    *_refused(_BOTH, "this server has no adapters", lora_path=(), lora_request=()),
    *_refused([COMPLETION], "this model does not fill gaps", suffix=("",)),
    *_refused([COMPLETION], "prompts are text or token ids", prompt_embeds=()),
    *_refused([COMPLETION], "a completion takes the number of alternatives as logprobs", top_logprobs=(0,)),
    *_works(
        [RESPONSE_FORMAT],
        type="text, json_object, json_schema or structural_tag",
        json_schema="what the type json_schema needs",
        format="of structural_tag: a format object",
        structures="of structural_tag, in its older form: begin, schema and end of each tag",
        triggers="of structural_tag, in its older form: what begins a tag",
    ),
    *_works([RESPONSE_SCHEMA], name="for people", schema="the schema; any JSON object without one"),
    *_no_op([RESPONSE_SCHEMA], _LongText, "for people", "description"),
    *_no_op([RESPONSE_SCHEMA], bool, "a schema is always meant strictly", "strict"),
    *_works(
        [STRUCTURED_OUTPUTS],
        json="a JSON schema, as an object or as text",
        json_object="any JSON object",
        regex="a regular expression that matches the whole answer",
        choice="the answer is one of these texts",
        grammar="in Lark's syntax or EBNF",
        whitespace_pattern="a regular expression of the white space between the tokens of JSON, which may be left out",
        disable_any_whitespace="true: there is none",
        structural_tag="parts between tags that are bound, in free text; an object or its text, in either of vLLM's forms",
    ),
    *_no_op([STRUCTURED_OUTPUTS], bool, "there is one library, and nothing to fall back to", "disable_fallback"),
    *_refused(
        [STRUCTURED_OUTPUTS], "a schema says itself what it allows", disable_additional_properties=(False,)
    ),
    *_works([STREAM_OPTIONS], include_usage="a last chunk has the usage", continuous_usage_stats="every chunk has its choice's"),
    *_no_op([STREAM_OPTIONS], bool, "chunks are not padded", "include_obfuscation"),
    *_works(
        [MESSAGE],
        role="system or developer, user, assistant, tool",
        content="text, or a list of text parts",
        name="of who writes, where the chat template has a place for it",
    ),
    *_works(
        [MESSAGE],
        _EMPTY,
        tool_calls="calls of an assistant, where the chat template has a place for them; arguments are an object or its JSON",
        tool_call_id="of the call that a tool answers, where the chat template has a place for it",
        reasoning_content="of an assistant, where the chat template has a place for it",
        reasoning="the same under vLLM's newer name",
    ),
    *_no_op(
        [MESSAGE, CONTENT_PART], dict[str, Any], "prefixes are cached without breakpoints",
        "cache_control", "prompt_cache_breakpoint",
    ),
    *_no_op([MESSAGE], Any, "no model reads them", "annotations"),
    *_no_op([MESSAGE], Any, "what OpenAI's client has read out of an answer's content", "parsed"),
    *_refused([MESSAGE], TEXT_ONLY, audio=_EMPTY),
    *_refused([MESSAGE], "what an assistant said goes into its content", refusal=_EMPTY),
    *_refused([MESSAGE], "OpenAI's older form of tool_calls", function_call=_EMPTY),
    *_works([CONTENT_PART], type="text, the only one that the models here read", text="the text"),
    *_works(
        [TOOL_CALL],
        id="by which the tool's answer names the call",
        type="function",
        function="what was called",
        index="place in a stream's answer; clients send it back",
    ),
    *_works([CALLED_FUNCTION], name="of the function", arguments="an object, or its JSON"),
    *_no_op([CALLED_FUNCTION], Any, "what OpenAI's client has read out of the arguments", "parsed_arguments"),
    *_works([TOOL], type="function", function="what the model may call"),
    *_no_op([TOOL], dict[str, Any], "prefixes are cached without breakpoints", "cache_control"),
    *_works(
        [TOOL_FUNCTION],
        name="of the function: letters, digits and _.:/-",
        description="for the model",
        parameters="a JSON schema of the arguments",
        strict="true: a grammar keeps the arguments to the schema",
    ),
    *_works([CHOSEN_TOOL], type="function", function="what is called"),
    *_works([CHOSEN_FUNCTION], name="of one of the tools"),
    *_works([ALLOWED_TOOLS], type="allowed_tools", allowed_tools="which of the tools are offered"),
    *_works([OFFERED_TOOLS], mode="auto or required", tools="each with its type and the name of its function"),
    *_works([THINKING], type="enabled or disabled", budget_tokens="thinking_token_budget, for the type enabled"),
    *_works([RESUME], fingerprint="system_fingerprint of the chunks", choices="one entry a choice"),
    *_works([RESUMED_CHOICE], token_ids="of the choice, so far", finish_reason="if it has ended"),
)  # fmt: skip

# Those of the endpoints that generate nothing.
_BOTH_TOKENIZE = TOKENIZE, TOKENIZE_CHAT
_TEMPLATE_FIELDS = (
    "messages", "tools", "add_generation_prompt", "continue_final_message", "documents", "reasoning_effort", "enable_thinking",
    "thinking", "chat_template", "chat_template_kwargs",
)  # fmt: skip
FIELDS += (
    *_works((*_BOTH_TOKENIZE, DETOKENIZE), model="name of the model; may be left out"),
    *_works((TOKENIZE,), prompt="text; messages may stand in its place"),
    *_works(
        (TOKENIZE_CHAT,),
        **{row.name: row.reason for row in FIELDS if CHAT in row.places and row.name in _TEMPLATE_FIELDS},
    ),
    *_works(
        _BOTH_TOKENIZE,
        add_special_tokens="those that the tokenizer puts around a text",
        return_token_strs="the tokens as the vocabulary spells them",
    ),
    *_works((DETOKENIZE,), tokens="token ids"),
    *_refused([TOKENIZE], _TOOLS, tools=([],)),
    *_refused(_BOTH_TOKENIZE, TEXT_ONLY, media_io_kwargs=({},), mm_processor_kwargs=({},)),
)


def _by_place() -> dict[str, MappingProxyType[str, FieldRow]]:
    tables: dict[str, dict[str, FieldRow]] = {}
    for row in FIELDS:
        for place in row.places:
            table = tables.setdefault(place, {})
            assert row.name not in table, f"{place}: {row.name} has two rows"
            table[row.name] = row
    return {place: MappingProxyType(table) for place, table in tables.items()}


ROWS = _by_place()
