"""Sampling parameters that hold where a request names none: the model's own, checked like a request's."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from actors.model_files.generation_defaults import recommended_sampling
from actors.model_files.source import ModelSource
from cluster.api_errors import shown, unavailable
from cluster.config import LLMConfig
from cluster.errors import ModelLoadError
from deployments.openai_api.requests.protocol import GenerationRequest

# Between the fingerprint of an engine and the mark of the defaults.
_JOINT = "+"


@dataclass(frozen=True)
class SamplingDefaults:
    """Of one application.

    Attributes:
        values: field of a request to its value, but for max_tokens.
        max_tokens: most tokens of an answer whose request says nothing; None for as many as fit.
        where: what they were read from.
    """

    values: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    where: str = "none"

    def shown(self) -> dict[str, Any]:
        """All of them, by their names in a request."""
        return {**self.values, **({} if self.max_tokens is None else {"max_tokens": self.max_tokens})}

    def mark(self, engine_fingerprint: str) -> str:
        """The fingerprint that a client sees: of the engine, and of what its request left to the server."""
        digest = self._digest
        return engine_fingerprint + _JOINT + digest if engine_fingerprint and digest else engine_fingerprint

    def engine_fingerprint(self, seen: str) -> str:
        """The engine's part of what ``mark`` made.

        Raises:
            ApiError: 503, as for an engine that is gone; other defaults, with which the same request asks for something else.
        """
        engine, _, digest = seen.partition(_JOINT)
        if digest != self._digest:
            raise unavailable(
                f"resume.fingerprint {seen} is of a server with other sampling defaults (generation_config), so this answer "
                "cannot be continued exactly here; send the request again",
                code="fingerprint_mismatch",
            )
        return engine

    @functools.cached_property
    def _digest(self) -> str:
        text = json.dumps(self.shown(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8] if self.shown() else ""


def sampling_defaults(config: LLMConfig, source: ModelSource) -> SamplingDefaults:
    """Read and check them.

    Raises:
        ModelLoadError: a value that no request may have.
    """
    values, where = recommended_sampling(config.generation_config, config.model, source)
    # A file may write a whole number as 50.0, or a real one as 1.
    whole = {
        name: int(v) if isinstance(v, float) and v.is_integer() and name in _WHOLE else v for name, v in values.items()
    }
    try:
        GenerationRequest.model_validate(whole)
        if whole.get("max_tokens") == 0:
            raise ValueError
    except (ValidationError, ValueError) as error:
        name = str(error.errors()[0]["loc"][0]) if isinstance(error, ValidationError) else "max_tokens"
        raise ModelLoadError(
            f"{where}: {name} is {shown(values[name])}, which no request may have; mend it, or set generation_config to none.",
            "generation_config",
        ) from None
    max_tokens = whole.pop("max_tokens", None)
    return SamplingDefaults(whole, max_tokens, where) if whole or max_tokens is not None else SamplingDefaults()


_WHOLE = ("top_k", "max_tokens")
