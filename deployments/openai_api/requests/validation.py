"""From a decoded object of a request to its model: the table of fields first, then types and bounds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError

from cluster.api_errors import ApiError, bad_request, shown
from cluster.wording import field_name, nearest, sentence
from deployments.openai_api.requests.fields import ROWS, FieldRow, Verdict
from deployments.openai_api.requests.schemas import NOTHING, NULL, or_nothing

UnknownFields = Literal["refuse", "ignore"]
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_IGNORES_UNKNOWN = "ignores_unknown"
_UNKNOWN_FIELD, _REFUSED = "unknown_field", "refused"


def whole(value: Any) -> Any:
    """A number without a fraction is an integer, as in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TokenId = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)]


class RequestPart(BaseModel):
    """An object of a request.

    Attributes:
        place: where it stands, of ``fields.ROWS``.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        fields = _settled(value, cls.place, bool(info.context and info.context[_IGNORES_UNKNOWN]))
        if not any(isinstance(item, float) for item in fields.values()):
            return fields
        integers = _integer_fields(cls)
        return {name: whole(item) if name in integers else item for name, item in fields.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What ``_meant`` and the model's own types take together."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        required, fields = schema.get("required", ()), schema.setdefault("properties", {})
        # A field of null is absent, also one that nobody knows.
        schema["additionalProperties"] = NULL
        rows: Mapping[str, FieldRow] = ROWS.get(cls.place, {})
        for name, row in rows.items():
            if row.verdict is Verdict.NO_OP:
                fields[name] = _adapter(row).json_schema()
            elif row.verdict is Verdict.REFUSED:
                fields[name] = NOTHING
        for name, own in fields.items():
            if name not in required:
                fields[name] = or_nothing(own, rows[name].harmless if name in rows else ())
            if name in rows:
                fields[name]["description"] = rows[name].reason
        return reference


@functools.cache
def _integer_fields(kind: type[BaseModel]) -> frozenset[str]:
    return frozenset(
        name
        for name, field in kind.model_fields.items()
        if field.annotation is int or set(get_args(field.annotation)) == {int, type(None)}
    )


def field_error(path: tuple[str | int, ...], value: Any, says: str, code: str = "invalid_value") -> ValidationError:
    """For a validator that knows better than pydantic what is at fault: ``path`` from where it stands, ``says`` all that is said
    behind the field's name."""
    return _error(path, value, _REFUSED, says=says, code=code)


def check_type(value: Any, only: str, says: str) -> Any:
    """``value`` as it came, unless it is an object of another type than ``only``: such a one has other fields, of which nothing
    need be said.

    Raises:
        ValidationError: names the type behind ``says``.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != only:
        raise field_error(("type",), kind, f"{says}, got {shown(kind)}", "unsupported_value")
    return value


def _error(path: tuple[str | int, ...], value: Any, kind: Any, **context: Any) -> ValidationError:
    custom = PydanticCustomError(kind, kind, context)
    return ValidationError.from_exception_data("", [InitErrorDetails(type=custom, loc=path, input=value)])


def _settled(fields: Mapping[str, Any], place: str, ignore_unknown: bool) -> dict[str, Any]:
    """The fields of an object that mean something: without nulls, no-ops, and refused ones that ask for nothing.

    Raises:
        ValidationError: names a field which is refused, or whose value is none that it may have.
    """
    rows, kept = ROWS.get(place), {}
    for name, value in fields.items():
        if value is None:
            continue
        if rows is None:
            kept[name] = value
        elif (row := rows.get(name)) is None:
            if not ignore_unknown:
                raise _error((name,), value, _UNKNOWN_FIELD, says=shown(name), hint=_hint(name, place))
        elif any(_same(value, harmless) for harmless in row.harmless):
            continue
        elif row.verdict is Verdict.WORKS:
            kept[name] = value
        elif row.verdict is Verdict.REFUSED:
            raise field_error((name,), value, f"{row.reason}; leave it out", "unsupported_parameter")
        else:
            _check_no_op(row, value)
    return kept


def _hint(name: str, place: str) -> str:
    elsewhere = [other for other, rows in ROWS.items() if name in rows]
    if elsewhere:
        return f"; it is one of {' and of '.join(elsewhere)}"
    meant = nearest(name, ROWS[place])
    return "" if meant is None else f"; did you mean {meant}?"


def _same(value: Any, harmless: Any) -> bool:
    """As JSON; nulls of objects are absent."""
    if isinstance(value, dict) and isinstance(harmless, dict):
        there = {name: item for name, item in value.items() if item is not None}
        return there.keys() == harmless.keys() and all(_same(there[name], harmless[name]) for name in there)
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _check_no_op(row: FieldRow, value: Any) -> None:
    try:
        _adapter(row).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path, context = (row.name, *first["loc"]), first.get("ctx", {})
        details = InitErrorDetails(type=first["type"], loc=path, input=first["input"], ctx=context)
        raise ValidationError.from_exception_data("", [details]) from None


@functools.cache
def _adapter(row: FieldRow) -> TypeAdapter[Any]:
    # The type is made here, of what a row says.
    kind: Any = Annotated[row.takes, BeforeValidator(whole)]
    return TypeAdapter(kind, config=_STRICT)


_Part = TypeVar("_Part", bound=RequestPart)


def validated(kind: type[_Part], fields: Mapping[str, Any], unknown_fields: UnknownFields = "refuse") -> _Part:
    """The object; an error names the field at fault and what it may be.

    Raises:
        ApiError: 400.
    """
    try:
        return kind.model_validate(fields, context={_IGNORES_UNKNOWN: unknown_fields == "ignore"})
    except ValidationError as error:
        raise _as_api_error(error) from None


def _as_api_error(error: ValidationError) -> ApiError:
    first: ErrorDetails = error.errors(include_url=False)[0]
    # A key of an object that the client made up is no field: it stands in the sentence alone.
    names = [field_name(part) for part in first["loc"] if part != "[key]"]
    where, param = ".".join(names), ".".join(_fields_of(names))
    kind, context = first["type"], first.get("ctx", {})
    if kind == _UNKNOWN_FIELD:
        parent = ".".join(names[:-1])
        message = f"unknown field {context['says']}{f' in {parent}' if parent else ''}{context['hint']}"
        return bad_request(message, where, "unknown_parameter")
    if kind == _REFUSED:
        return bad_request(f"{where}: {context['says']}", param, context["code"])
    said = sentence(kind, context, first["msg"])
    if kind == "missing":
        return bad_request(f"{where} {said}", param, "missing_required_parameter")
    return bad_request(f"{where}: {said}, got {shown(first['input'])}", param)


_MAPS = frozenset({"logit_bias", "metadata"})


def _fields_of(names: list[str]) -> list[str]:
    return names[:1] if names and names[0] in _MAPS else names
