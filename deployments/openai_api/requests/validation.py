"""From a decoded object of a request to its model: the table of fields first, then types and bounds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cluster.api_errors import ApiError, bad_request
from deployments.openai_api.requests.fields import ROWS, FieldRow, Verdict
from deployments.openai_api.requests.wording import field_name, nearest, sentence, shown

UnknownFields = Literal["refuse", "ignore"]
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def whole(value: Any) -> Any:
    """A number without a fraction is an integer, as in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TokenId = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)]


class RequestPart(BaseModel):
    """An object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not any(isinstance(item, float) for item in value.values()):
            return value
        integers = _integer_fields(cls)
        return {name: whole(item) if name in integers else item for name, item in value.items()}


@functools.cache
def _integer_fields(kind: type[BaseModel]) -> frozenset[str]:
    return frozenset(
        name
        for name, field in kind.model_fields.items()
        if field.annotation is int or set(get_args(field.annotation)) == {int, type(None)}
    )


def settled(fields: Mapping[str, Any], place: str, path: str = "", ignore_unknown: bool = False) -> dict[str, Any]:
    """The fields of an object that mean something: without nulls, no-ops, and refused ones that ask for nothing.

    Args:
        place: where the object stands, of ``fields.ROWS``.
        path: its own name in errors.
        ignore_unknown: leave out fields that nobody knows, rather than refuse them.
    Raises:
        ApiError: 400 that names a field which is refused, or whose value is none that it may have.
    """
    rows, kept = ROWS[place], {}
    for name, value in fields.items():
        if value is None:
            continue
        row = rows.get(name)
        if row is None:
            if not ignore_unknown:
                raise _unknown(name, place, path)
        elif row.verdict is Verdict.WORKS:
            kept[name] = value
        elif row.verdict is Verdict.REFUSED:
            if not any(_same(value, harmless) for harmless in row.harmless):
                param = _joined(path, name)
                raise bad_request(f"{param}: {row.reason}; leave it out", param, "unsupported_parameter")
        else:
            _check_no_op(row, value, _joined(path, name))
    return kept


def _unknown(name: str, place: str, path: str) -> ApiError:
    param = _joined(path, field_name(name))
    message = f"unknown field {shown(name)}" + (f" in {path}" if path else "")
    elsewhere = [other for other, rows in ROWS.items() if name in rows]
    if elsewhere:
        message += f"; it is one of {' and of '.join(elsewhere)}"
    elif (meant := nearest(name, ROWS[place])) is not None:
        message += f"; did you mean {meant}?"
    return bad_request(message, param, "unknown_parameter")


def _same(value: Any, harmless: Any) -> bool:
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _check_no_op(row: FieldRow, value: Any, param: str) -> None:
    try:
        _adapter(row).validate_python(value)
    except ValidationError as error:
        raise _as_api_error(error, param) from None


@functools.cache
def _adapter(row: FieldRow) -> TypeAdapter[Any]:
    # The type is made here, of what a row says.
    kind: Any = Annotated[row.takes, BeforeValidator(whole)]
    return TypeAdapter(kind, config=_STRICT)


_Part = TypeVar("_Part", bound=BaseModel)


def validated(kind: type[_Part], fields: Mapping[str, Any]) -> _Part:
    """The object; an error names the field at fault and what it may be.

    Raises:
        ApiError: 400.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _as_api_error(error) from None


def _as_api_error(error: ValidationError, path: str = "") -> ApiError:
    first: ErrorDetails = error.errors(include_url=False)[0]
    # A key of an object that the client made up is no field: it stands in the sentence alone.
    names = [field_name(part) for part in first["loc"] if part != "[key]"]
    where = _joined(path, ".".join(names))
    param = _joined(path, ".".join(_fields_of(names)))
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return bad_request(
            f"unknown field {shown(names[-1])} in {where.rpartition('.')[0]}", where, "unknown_parameter"
        )
    said = sentence(kind, context, first["msg"])
    if kind == "missing":
        return bad_request(f"{where} {said}", param, "missing_required_parameter")
    return bad_request(f"{where}: {said}, got {shown(first['input'])}", param)


_MAPS = frozenset({"logit_bias", "metadata"})


def _fields_of(names: list[str]) -> list[str]:
    return names[:1] if names and names[0] in _MAPS else names


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
