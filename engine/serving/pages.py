"""The page for people: the files of `page/`, from memory, at `/` and `/page/...`.

The page asks this service alone: no file names another address, and the browser is told to load
nothing else and to run no script and no style that stands in HTML.
"""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",            # kept, and asked for again: a 304 if nothing changed
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",       # nobody else learns where the service is
    "X-Content-Type-Options": "nosniff",
}
FILES = {
    path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES
}
TAGS = {name: f'"{hashlib.sha256(content).hexdigest()[:20]}"' for name, content in FILES.items()}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """Return the page."""
    return file_answer("index.html", request.headers.get("if-none-match"))


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def part(name: str, request: Request) -> Response:
    """Return a file that the page needs."""
    if name not in FILES:
        raise HTTPException(404)
    return file_answer(name, request.headers.get("if-none-match"))


def file_answer(name: str, known_tags: str | None) -> Response:
    """Return a file, or 304 without it where the browser has this one."""
    headers = {**HEADERS, "ETag": TAGS[name]}
    if TAGS[name] in (known_tags or ""):
        return Response(status_code=304, headers=headers)
    return Response(FILES[name], headers=headers, media_type=TYPES[Path(name).suffix])
