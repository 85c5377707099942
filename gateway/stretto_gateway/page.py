"""Web pages: `GET /` to try the models with text and microphone, and `GET /docs` with the API reference.

All files of these pages are in this package; none is loaded from another host.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Stretto: the API</title>
<link rel="icon" type="image/svg+xml" href="page/icon.svg">
<link rel="stylesheet" href="page/style.css">
</head>
<body class="reference">
"""
METHODS = ("get", "post", "put", "delete")


CODE = re.compile(r"`([^`]+)`")


def reference_page(schema: dict[str, Any], base_url: str) -> str:
    """Return an HTML page about the routes of an OpenAPI schema, with an example; `base_url` ends with a slash."""
    info = schema["info"]
    parts = [HEAD, f"<header><h1>{escape(info['title'])}</h1></header>\n<main>\n"]
    parts.append(f"<p>{_prose(info['description'])}</p>\n")
    parts.append(
        f'<section class="card" aria-label="An example">\n<h2>Try it</h2>\n{_example(schema, base_url)}</section>\n'
    )
    for path, operations in schema["paths"].items():
        for method in METHODS:
            if method in operations:
                parts += _operation(method, path, operations[method], schema["components"]["schemas"])
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _prose(text: str) -> str:
    """Return `text` as HTML, with backquoted parts as code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def _example(schema: dict[str, Any], base_url: str) -> str:
    """Return HTML with a curl command that generates a sentence."""
    key = ' \\\n  -H "authorization: Bearer $KEY"' if "security" in schema else ""
    line = (
        f"curl {base_url}v1/audio/speech{key} \\\n"
        '  -H "content-type: application/json" \\\n'
        """  -d '{"input": "It is twenty past nine."}' -o speech.mp3"""
    )
    note = "The response is an mp3 file. It starts to arrive before the whole sentence has been generated."
    return f"<pre><code>{escape(line, quote=False)}</code></pre>\n<p>{note}</p>\n"


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    name = f"{method.upper()} {path}"
    yield f'<section class="card" aria-label="{escape(name)}">\n<h2><code>{escape(name)}</code></h2>\n'
    yield f"<p>{_prose(operation.get('description', ''))}</p>\n"
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = _resolved(body["schema"], schemas)
        needed = set(fields.get("required", ()))
        properties = fields.get("properties", {})  # none if the caller chooses the names
        named = sorted(properties.items(), key=lambda item: item[0] not in needed)  # required fields first
        rows = [_field(item, schema, fields, schemas) for item, schema in named]
        yield _table(f"Fields ({media_type})", ("name", "type", "default", "what"), rows)
    responses = operation["responses"].items()
    answers = [(status, _answer(response, schemas), response["description"]) for status, response in responses]
    yield _table("Answers", ("status", "as", "what"), answers)
    yield "</section>\n"


def _field(name: str, schema: dict[str, Any], fields: dict[str, Any], schemas: dict[str, Any]) -> tuple[str, ...]:
    is_needed = name in fields.get("required", ())
    default = "" if schema.get("default") is None else repr(schema["default"])
    if is_needed:
        default = "required"
    return name, _type(schema, schemas), default, schema.get("description", "")


def _answer(response: dict[str, Any], schemas: dict[str, Any]) -> str:
    content = response.get("content", {})
    return (
        ", ".join(f"{media_type}: {_type(body['schema'], schemas)}" for media_type, body in content.items())
        or "nothing"
    )


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return a short description of a type; for an object, its field names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        fields = _resolved(schema, schemas)
        return f"{name} {{{', '.join(fields.get('properties', ()))}}}"
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return " or ".join(_type(alternative, schemas) for alternative in schema[keyword])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], schemas)}"
    if "contentMediaType" in schema:
        return "file"
    return str(schema.get("type", "anything"))


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    resolved: dict[str, Any] = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return resolved


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_prose(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><caption>{escape(title)}</caption>\n<tr>{head}</tr>\n{body}</table>\n"


FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
REFERENCE = "/docs"
WITH_SLASH = "/docs/"
FILES = {
    "/" if path.name == "index.html" else f"/page/{path.name}": path
    for path in sorted(FOLDER.iterdir())
    if path.suffix in MEDIA_TYPES
}
PATHS = (REFERENCE, WITH_SLASH, *FILES)
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


async def show(request: Request) -> Response:
    """Return a file of the page. No key is required, because the page contains no data from the gateway."""
    path = FILES[request.scope["route"].path]
    return Response(path.read_bytes(), headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])


async def show_reference(request: Request) -> Response:
    """Return `/openapi.json` as an HTML page."""
    return HTMLResponse(reference_page(request.app.openapi(), str(request.base_url)), headers=HEADERS)


async def without_slash() -> Response:
    """Redirect to the page without the trailing slash, because its links are relative, also below a proxy's prefix."""
    return Response(status_code=307, headers={"location": f"..{REFERENCE}"})


for file_path in FILES:
    router.add_api_route(file_path, show)
router.add_api_route(REFERENCE, show_reference)
router.add_api_route(WITH_SLASH, without_slash)
