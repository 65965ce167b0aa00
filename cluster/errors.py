"""Errors that cross a process boundary: each one says what is wrong, where, and what to do next."""

from __future__ import annotations

# How the reason begins why a replica cannot start, where another try would fail, too.
CANNOT_SERVE = "the model cannot be served: "


class BiremeError(Exception):
    """Base of every error the project raises on purpose.

    Attributes:
        message: one sentence for a person.
        param: the request field or setting at fault, or None.
        code: short machine-readable reason.
    """

    code = "internal_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self):
        return (type(self), (self.message, self.param, self.code))


class InvalidRequestError(BiremeError):
    """The client asked for something that can never work (HTTP 400)."""

    code = "invalid_value"


class ModelLoadError(BiremeError):
    """A model is missing, damaged or of an unknown architecture."""

    code = "model_load_error"


class ModelNotHereError(ModelLoadError):
    """This node does not have the model's files; another one may."""


class ConfigError(BiremeError):
    """Settings that are each allowed but do not fit the model, the device or each other."""

    code = "config_error"


class OverloadedError(BiremeError):
    """The bounded queue is full; try again later (HTTP 429)."""

    code = "overloaded"


class EngineDeadError(BiremeError):
    """The engine that held a request is gone (HTTP 503 once attempts are used up)."""

    code = "engine_dead"


class StaleAttemptError(BiremeError):
    """The engine has this attempt of the request already, or a newer one."""

    code = "stale_attempt"
