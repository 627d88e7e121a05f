"""Netron's own viewer, served from the studio's own origin: a graph needs no second port and no outside request.

A page leases a file: it gets an address with an unguessable token, good for this browser tab and for `LIFE` seconds
after its last use. Nothing is copied; the viewer's files are read from the installed package. Its start page is
rewritten: it names the leased file, follows the studio's theme, and neither reports usage nor asks for a newer version.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import quote

import streamlit as st

from app import state

LIFE = 3600.0  # seconds
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".html": "text/html",
}
_DARK = "@media (prefers-color-scheme: dark)"
_VERSION = re.compile(r'<meta name="version" content="[^"]*">')
_DATE = re.compile(r'<meta name="date" content="[^"]*">')


@dataclass
class Lease:
    """A file that its token's holder may read."""

    path: Path
    name: str
    owner: str
    used: float = field(default_factory=time.monotonic)


class Leases:
    """Token → lease. Shared by all tabs, hence the lock."""

    def __init__(self) -> None:
        self.served = False  # whether the routes are there; without them an address would open the studio in itself
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def put(self, path: Path, name: str, owner: str) -> str:
        """The token for `path`; the same one while the lease lives, so that a rerun does not reload the viewer."""
        now = time.monotonic()
        with self._lock:
            self._leases = {t: lease for t, lease in self._leases.items() if now - lease.used < LIFE}
            for token, lease in self._leases.items():
                if (lease.path, lease.name, lease.owner) == (path, name, owner):
                    lease.used = now
                    return token
            token = secrets.token_urlsafe(18)
            self._leases[token] = Lease(path, name, owner)
            return token

    def get(self, token: str) -> Lease | None:
        """None once the lease has run out, its tab is closed or its file is gone."""
        with self._lock:
            lease = self._leases.get(token)
            if lease is None or not lease.path.is_file():
                return None
            lease.used = time.monotonic()
            return lease

    def drop(self, owner: str) -> None:
        with self._lock:
            self._leases = {t: lease for t, lease in self._leases.items() if lease.owner != owner}

    def __len__(self) -> int:
        return len(self._leases)


LEASES = Leases()


@st.cache_resource(scope="session", on_release=LEASES.drop, show_spinner=False)
def _owner() -> str:
    """A private id of this tab; closing the tab releases it, and with it all its leases."""
    return secrets.token_hex(8)


def graph_address(file: Path, name: str) -> str:
    """Where an iframe finds the graph of an ONNX file, in the theme the page has now."""
    theme = "dark" if st.context.theme.type == "dark" else "light"
    token = LEASES.put(file.resolve(), name, _owner())
    return f"{state.current().base}/netron/{token}/{theme}/index.html"


def file_address(file: Path, name: str) -> str:
    """Where the browser downloads a file as `name`, streamed from disk."""
    return f"{state.current().base}/files/{LEASES.put(file.resolve(), name, _owner())}"


def root() -> Path:
    """The folder of the viewer's files, asked of the installer's records: this module has the package's name."""
    return Path(str(distribution("netron").locate_file("netron"))).resolve()


def index(name: str, theme: str) -> str:
    """The viewer's start page for the file `name`, which it fetches from data/."""
    shown = escape(name, quote=True)
    about = (
        '<meta name="type" content="Embedded"><meta name="version" content="0.0.0">'
        f'<meta name="file" content="data/{quote(name)}">'
        f'<meta name="name" content="{shown}"><meta name="identifier" content="{shown}">'
    )
    # version 0.0.0 means "not packaged": usage is not reported; without a date no update is asked for after 180 days
    page = _DATE.sub("", _VERSION.sub(lambda _: about, (root() / "index.html").read_text(encoding="utf-8")))
    return retheme(page, theme)


def retheme(css: str, theme: str) -> str:
    """Make rules for the system's dark mode follow the studio's theme instead."""
    return css.replace(_DARK, "@media all" if theme == "dark" else "@media not all")


def asset(relative: str, theme: str) -> tuple[bytes, str] | None:
    """(content, type) of one of the viewer's files; None for anything else."""
    folder = root()
    path = (folder / relative).resolve()
    if folder not in path.parents or not path.is_file() or path.suffix not in TYPES:
        return None
    content = path.read_bytes()
    if path.suffix == ".css":
        content = retheme(content.decode(), theme).encode()
    return content, TYPES[path.suffix]
