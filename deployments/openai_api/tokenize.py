"""Text to token ids and back over HTTP, in vLLM's shape: /tokenize, /detokenize and /tokenizer_info."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel

from cluster.api_errors import bad_request
from deployments.http.body import parse_json
from deployments.http.connection import Peer, while_connected
from deployments.http.json_pieces import write_json
from deployments.http.large_requests import SMALL_BYTES, large_requests
from deployments.openai_api.requests.fields import DETOKENIZE, TOKENIZE, TOKENIZE_CHAT, ShortText
from deployments.openai_api.requests.messages import TemplatedChat
from deployments.openai_api.requests.protocol import parse_fields
from deployments.openai_api.requests.sampling import check_prompt_ids
from deployments.openai_api.requests.schemas import Text
from deployments.openai_api.requests.token_lists import TokenIdList
from deployments.openai_api.requests.validation import RequestPart
from deployments.openai_api.service import OpenAiService


class TokenizePromptRequest(RequestPart):
    """Body of POST /tokenize for the prompt of a completion."""

    place = TOKENIZE

    model: ShortText | None = None
    prompt: Text
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(TemplatedChat):
    """Body of POST /tokenize for the messages of a chat."""

    place = TOKENIZE_CHAT

    model: ShortText | None = None
    return_token_strs: bool = False


class DetokenizeRequest(RequestPart):
    """Body of POST /detokenize."""

    place = DETOKENIZE

    model: ShortText | None = None
    tokens: Annotated[list[int], TokenIdList()]


class TokenizeResponse(BaseModel):
    """Answer of POST /tokenize. ``token_strs`` are the vocabulary's own spellings."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(BaseModel):
    """Answer of POST /detokenize."""

    prompt: str


class TokenizeEndpoints:
    """The work of the endpoints. A text may be longer than the model takes: to know that is what counting is for."""

    def __init__(self, service: OpenAiService) -> None:
        self._service = service
        self._tokenizer = service.tokenizer

    async def tokenize(self, body: bytearray, peer: Peer) -> list[bytes]:
        """The answer's JSON, in pieces.

        Raises:
            ApiError: the request is refused.
            ClientGoneError: nobody waits for it any more.
        """
        return await _answered(self._tokenize, body, peer)

    async def detokenize(self, body: bytearray, peer: Peer) -> list[bytes]:
        """As ``tokenize``."""
        return await _answered(self._detokenize, body, peer)

    def info(self) -> dict[str, Any]:
        """What tokenizer_config.json of the model says, or would say."""
        tokenizer = self._tokenizer
        return {
            # Loads any tokenizer.json, which is all that is read here.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self._service.limits.max_model_len,
            **tokenizer.special_tokens,
            "chat_template": tokenizer.chat_template_source,
            "added_tokens_decoder": tokenizer.added_tokens(),
        }

    def _tokenize(self, fields: Any) -> dict[str, Any]:
        service = self._service
        request: TokenizePromptRequest | TokenizeChatRequest
        if isinstance(fields, dict) and fields.get("messages") is not None:
            if fields.get("prompt") is not None:
                raise bad_request("prompt and messages: give one of them", "prompt")
            request = parse_fields(TokenizeChatRequest, fields, service.unknown_fields)
            service.check_model(request.model)
            ids = service.tokenize_chat(request)
        else:
            request = parse_fields(TokenizePromptRequest, fields, service.unknown_fields)
            service.check_model(request.model)
            ids = service.tokenize_text(request.prompt, request.add_special_tokens)
        strings = [self._tokenizer.token_spelling(i) for i in ids] if request.return_token_strs else None
        return {
            "count": len(ids),
            "max_model_len": service.limits.max_model_len,
            "tokens": ids,
            "token_strs": strings,
        }

    def _detokenize(self, fields: Any) -> dict[str, Any]:
        request = parse_fields(DetokenizeRequest, fields, self._service.unknown_fields)
        self._service.check_model(request.model)
        check_prompt_ids(request.tokens, "tokens", self._service.limits.vocab_size)
        return {"prompt": self._tokenizer.decode(request.tokens, skip_special_tokens=False)}


async def _answered(work: Callable[[Any], dict[str, Any]], body: bytearray, peer: Peer) -> list[bytes]:
    def answer(in_pieces: bool) -> list[bytes]:
        fields = parse_json(body)
        body.clear()
        return [piece.encode() for piece in write_json(work(fields), in_pieces)]

    if len(body) <= SMALL_BYTES:
        return answer(False)
    return await while_connected(peer.receive, large_requests.prepare(peer.name, len(body), answer, True))
