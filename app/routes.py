"""Addresses beside Streamlit's own, on the same origin: the graph viewer and file downloads.

    /netron/{token}/{theme}/…   the viewer's start page, its files, and data/<name>: the leased model
    /files/{token}              a leased file, streamed
    /tune, /runs, …             Streamlit's own start page, told where its server is

A token is the permission: unguessable, of one tab, running out. No path from the outside ever reaches the disk.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from app.netron import LEASES, asset, index

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FRESH = HEADERS | {"Cache-Control": "no-store"}
KEPT = HEADERS | {"Cache-Control": "private, max-age=86400"}


async def view(request: Request) -> Response:
    """The viewer for one leased model."""
    token, theme, relative = (request.path_params[name] for name in ("token", "theme", "relative"))
    lease = LEASES.get(token)
    if lease is None:
        return PlainTextResponse("This graph has expired. Reload the page to see it again.", 404, FRESH)
    if relative in ("", "index.html"):
        page = Response(index(lease.name, theme), media_type="text/html", headers=FRESH)
        # the viewer asks for consent to its usage statistics, which are switched off here, unless this cookie is there
        page.set_cookie("consent", "1", samesite="strict")
        return page
    if relative.startswith("data/"):
        return FileResponse(lease.path, media_type="application/octet-stream", headers=FRESH)
    found = asset(relative, theme)
    if found is None:
        return PlainTextResponse("Not found.", 404, FRESH)
    return Response(found[0], media_type=found[1], headers=KEPT)


async def download(request: Request) -> Response:
    """A leased file under its own name."""
    lease = LEASES.get(request.path_params["token"])
    if lease is None:
        return PlainTextResponse("This download has expired. Reload the page and click again.", 404, FRESH)
    # identity: compressing a file that is already dense would cost seconds and hold it in memory
    headers = FRESH | {"Content-Encoding": "identity"}
    return FileResponse(lease.path, filename=lease.name, headers=headers)


@cache
def start_page() -> str:
    """Streamlit's index.html. Opened at /tune it would look for its server under /tune/ first and log two errors."""
    index = (Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    here = '<script>window.__streamlit = {BACKEND_BASE_URL: new URL(".", location.href).href}</script>'
    return index.replace("<head>", f"<head>{here}", 1)


async def page(_: Request) -> Response:
    """A page opened by its own address."""
    return Response(start_page(), media_type="text/html", headers={"Cache-Control": "no-cache"})


async def home(request: Request) -> Response:
    """The first page's own name: Streamlit knows it by no other address than the root."""
    return RedirectResponse(f"./?{request.url.query}".removesuffix("?"))


FIRST = "library"
PAGES = sorted(path.stem for path in (Path(__file__).resolve().parents[1] / "pages").glob("[a-z]*.py"))
ROUTES = [
    Route("/netron/{token}/{theme}/{relative:path}", view),
    Route("/files/{token}", download),
    *(Route(f"/{name}", home if name == FIRST else page) for name in PAGES),
]
