"""`GET /`: a page to hear what the gateway serves, and to be heard; `GET /docs`: one about the API. Their files are in
the package and load no others."""

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stretto_gateway.reference import reference_page

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATHS = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
REFERENCE = "/docs"
FILES = {"/" if path.name == "index.html" else f"/page/{path.name}": path for path in PATHS}
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
    """A file of the page, which everybody may have: what it shows, the gateway tells to those alone who may ask."""
    path = FILES[request.scope["route"].path]
    return Response(path.read_bytes(), headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])


async def show_reference(request: Request) -> Response:
    """Return what `/openapi.json` holds as a page for people."""
    return HTMLResponse(reference_page(request.app.openapi(), str(request.base_url)), headers=HEADERS)


for each in FILES:
    router.add_api_route(each, show)
router.add_api_route(REFERENCE, show_reference)
