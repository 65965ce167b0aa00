"""The endpoints as one table, and what is made of it: routes, /openapi.json, and the page at /docs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from html import escape
from json import dumps
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from deployments.openai_api.requests.validation import UnknownFields

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "description": "Every answer whose status is 400 or higher.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One sentence for a person."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": ["string", "null"], "description": "The reason, for a program."},
            },
        }
    },
}
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0 }}
tr {{ border-top: 1px solid #8884 }} code {{ font-size: 90% }} h2 {{ margin-top: 2rem }}
</style></head><body><h1>{title}</h1>
"""
# The page is text and its own style: nothing is loaded, from here or elsewhere.
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Endpoint(NamedTuple):
    """One path.

    Attributes:
        handler: its docstring's first line says what it does.
        bodies: models of which one validates the request's body.
        answer: model of the answer's JSON; None if that is told by OpenAI's reference, or is no JSON.
        content: type of the answer.
        needs_key: where the API needs one at all.
        query: parameters behind the path, with what they mean.
    """

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    methods: Sequence[str] = ("GET",)
    bodies: Sequence[type[BaseModel]] = ()
    answer: type[BaseModel] | None = None
    content: Sequence[str] = ("application/json",)
    needs_key: bool = True
    query: Mapping[str, str] = {}

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip().splitlines()[0]


def openapi(
    endpoints: Iterable[Endpoint], version: str, prefix: str, needs_key: bool, unknown_fields: UnknownFields = "refuse"
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of ``endpoints``; schemas are those of the models that validate.

    Args:
        prefix: of all paths.
        needs_key: whether requests need an API key.
        unknown_fields: what becomes of fields that no schema has.
    """
    endpoints = list(endpoints)
    models = [model for endpoint in endpoints for model in (*endpoint.bodies, *filter(None, [endpoint.answer]))]
    pairs = [(model, "validation") for model in dict.fromkeys(models)]
    references, definitions = models_json_schema(pairs, ref_template=_REFERENCE)  # type: ignore[arg-type]
    schema_of: dict[Any, Any] = {model: schema for (model, _), schema in references.items()}
    schemas = deepcopy(definitions.get("$defs", {}))
    for schema in schemas.values() if unknown_fields == "ignore" else ():
        # Models say so at their own level alone: maps and values that ask for nothing are further down.
        schema.pop("additionalProperties", None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bireme",
            "version": version,
            "description": "Completions and chats are OpenAI's, with extensions under vLLM's names. A field that is null counts "
            "as absent. Bodies may be gzip.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {
            endpoint.path.replace(":path}", "}"): {
                method.lower(): _operation(endpoint, schema_of, needs_key) for method in endpoint.methods
            }
            for endpoint in endpoints
        },
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, schema_of: Mapping[Any, Any], needs_key: bool) -> dict[str, Any]:
    name = endpoint.path.partition("{")[2].partition(":")[0]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}] if name else []
    parameters += [
        {"name": query, "in": "query", "description": meaning, "schema": {"type": "string"}}
        for query, meaning in endpoint.query.items()
    ]
    answer = {} if endpoint.answer is None else {"schema": schema_of[endpoint.answer]}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "security": [{"key": []}] if needs_key and endpoint.needs_key else [],
        "parameters": parameters,
        "responses": {
            "200": {"description": "The answer.", "content": dict.fromkeys(endpoint.content, answer)},
            "default": {
                "description": "An error.",
                "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}},
            },
        },
    }
    if endpoint.bodies:
        schemas = [schema_of[model] for model in endpoint.bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def docs_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as a page of HTML that needs nothing else."""
    title = f"{document['info']['title']} {document['info']['version']}"
    prefix = document["servers"][0]["url"].rstrip("/")  # of an application that is not at the root
    parts = [_HEAD.format(title=escape(title)), f"<p>{escape(document['info']['description'])}</p>"]
    parts.append(f"<p>The same for programs: <code>{escape(prefix)}/openapi.json</code>.</p>")
    parts.append("<table><tr><th>endpoint</th><th>what it does</th><th>body</th></tr>")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            bodies = ", ".join(_type_text(part) for part in schema.get("anyOf", [schema] if schema else []))
            asked = "".join(
                f"<br><code>?{escape(p['name'])}</code> {escape(p['description'])}"
                for p in operation["parameters"]
                if p["in"] == "query"
            )
            parts.append(
                f"<tr><td><code>{method.upper()} {escape(prefix + path)}</code></td>"
                f"<td>{escape(operation['summary'])}{asked}</td><td>{bodies}</td></tr>"
            )
    parts.append("</table>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(
            f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p><table>'
        )
        required = schema.get("required", [])
        for field, about in schema.get("properties", {}).items():
            must = " (required)" if field in required else ""
            default = f" = {_json(about['default'])}" if about.get("default") is not None else ""
            meaning = escape(about.get("description", ""))
            parts.append(
                f"<tr><td><code>{escape(field)}</code>{must}</td><td>{_type_text(about)}{escape(default)}</td>"
                f"<td>{meaning}</td></tr>"
            )
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def _json(value: Any) -> str:
    return dumps(value, ensure_ascii=False)


_BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "maxLength": "length ≤",
    "maxItems": "items ≤",
}


def _type_text(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to those it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type_text(part) for part in schema["anyOf"] if part.get("type") != "null") or "nothing"
    if "enum" in schema or "const" in schema:
        return escape(", ".join(_json(value) for value in schema.get("enum", [schema.get("const")])))
    kind = schema.get("type", "anything")
    text = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    if kind == "array":
        text += f" of {_type_text(schema.get('items', {}))}"
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return escape(", ").join([text, *map(escape, bounds)])
