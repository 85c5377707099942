"""`GET /`: a page to try the models, by text and microphone. `GET /docs`: the API reference.

All their files are in this package; the pages load none from other hosts.
"""

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
    """Return a file of the page. It needs no key, because the page contains no data of the gateway."""
    path = FILES[request.scope["route"].path]
    return Response(path.read_bytes(), headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])


async def show_reference(request: Request) -> Response:
    """Return `/openapi.json` as an HTML page."""
    return HTMLResponse(reference_page(request.app.openapi(), str(request.base_url)), headers=HEADERS)


for each in FILES:
    router.add_api_route(each, show)
router.add_api_route(REFERENCE, show_reference)
