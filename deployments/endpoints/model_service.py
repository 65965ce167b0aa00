"""The model that an ingress serves, from the moment on at which it is known."""

from __future__ import annotations

import asyncio
import logging

from actors.text.tokenizer import Tokenizer
from cluster.api_errors import unavailable
from cluster.config import LLMConfig
from cluster.outputs import ServedModel
from deployments.answers.request_line import RequestLines
from deployments.http.body import default_body_bytes
from deployments.openai_api.answer_formats import AnswerFormats
from deployments.openai_api.requests.chat_prompt import ChatPrompts
from deployments.openai_api.requests.sampling import ModelLimits
from deployments.openai_api.requests.sampling_defaults import SamplingDefaults
from deployments.openai_api.service import OpenAiService
from deployments.routing.engine_client import EngineClient

logger = logging.getLogger("ray.serve")

_LOADING_PATIENCE_S = 30.0


class ModelService:
    """The service of the model, and those who wait for it.

    Attributes:
        now: the service; None until it is known what is served.
    """

    def __init__(self, max_choices: int, max_prompt_bytes: int | None = None) -> None:
        self.now: OpenAiService | None = None
        self.max_choices = max_choices
        self._max_prompt_bytes = max_prompt_bytes
        self._is_known = asyncio.Event()

    def known(self, service: OpenAiService) -> None:
        """It is what is served from now on."""
        self.now = service
        self._is_known.set()

    async def ready(self) -> OpenAiService:
        """The service. A new ingress gets requests at once, also in an update under load, so they wait for it a while.

        Raises:
            ApiError: it is not known yet.
        """
        if self.now is None:
            try:
                await asyncio.wait_for(self._is_known.wait(), _LOADING_PATIENCE_S)
            except asyncio.TimeoutError:
                raise unavailable("the model is still loading", code="loading") from None
        assert self.now is not None
        return self.now

    @property
    def max_body_bytes(self) -> int:
        """Of a request's body; the service is known."""
        assert self.now is not None
        return self._max_prompt_bytes or default_body_bytes(self.now.limits.max_model_len, self.max_choices)


def service_of(
    config: LLMConfig,
    client: EngineClient,
    tokenizer: Tokenizer,
    defaults: SamplingDefaults,
    lines: RequestLines,
    model: ServedModel,
) -> OpenAiService:
    """The service of ``model`` as it is configured."""
    service = OpenAiService(
        client,
        tokenizer,
        model.model_id,
        limits_of(model),
        config.max_choices,
        ChatPrompts(
            tokenizer,
            config.special_tokens_in_messages == "text",
            config.trust_request_chat_template,
            config.trust_request_documents,
        ),
        defaults=defaults,
        unknown_fields=config.unknown_fields,
        lines=lines,
        formats=AnswerFormats(tokenizer, config.tool_call_parser, config.reasoning_parser),
        aliases=config.model_aliases,
    )
    shown = " ".join(f"{name}={value}" for name, value in defaults.shown().items())
    logger.info("sampling defaults of %s: %s (from %s)", model.model_id, shown or "none", defaults.where)
    return service


def limits_of(model: ServedModel) -> ModelLimits:
    return ModelLimits(model.max_model_len, model.vocab_size)
