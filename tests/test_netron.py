"""The graph viewer and downloads: what a token opens, and what nothing opens."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from app import netron
from app.netron import LEASES, Leases
from app.routes import ROUTES


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


Get = Callable[[str], Answer]


@pytest.fixture(scope="module")
def get() -> Iterator[Get]:
    """GET from a server with our routes; the address goes out as it is written."""
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=ROUTES), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def ask(address: str) -> Answer:
            connection = HTTPConnection(*listener.getsockname()[:2], timeout=10)
            connection.request("GET", address)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

        yield ask
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def token(tmp_path: Path) -> str:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"onnx bytes")
    return LEASES.put(file, 'my "net".onnx', "tab-1")


def test_the_start_page_names_the_file_and_reports_nothing(get: Get, token: str) -> None:
    answer = get(f"/netron/{token}/dark/index.html")
    page = answer.text
    assert answer.status == 200
    assert '<meta name="file" content="data/my%20%22net%22.onnx">' in page
    assert 'content="my &quot;net&quot;.onnx"' in page
    assert '<meta name="version" content="0.0.0">' in page
    assert '<meta name="date"' not in page
    assert "prefers-color-scheme" not in page
    assert "@media all" in page
    assert "consent=1" in answer.headers["set-cookie"]
    assert "connect-src 'self'" in answer.headers["content-security-policy"]


def test_the_installed_viewer_is_the_one_that_is_rewritten() -> None:
    """Should a newer viewer name these differently, the rewriting would silently do nothing."""
    page = (netron.root() / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<meta name="version" content="[^"]*">', page)) == 1
    assert len(re.findall(r'<meta name="date" content="[^"]*">', page)) == 1
    assert "@media (prefers-color-scheme: dark)" in page


def test_the_leased_file_and_the_viewers_own_files_are_served(get: Get, token: str) -> None:
    assert get(f"/netron/{token}/light/data/whatever").content == b"onnx bytes"
    script = get(f"/netron/{token}/light/view.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["x-content-type-options"] == "nosniff"


def test_a_download_keeps_its_name_and_its_bytes(get: Get, token: str) -> None:
    answer = get(f"/files/{token}")
    assert answer.content == b"onnx bytes"
    assert "my%20%22net%22.onnx" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    "path",
    # the second exists, and has an ending that is served
    ["server.py", "../streamlit/static/index.html", "..%2Fstreamlit%2Fstatic%2Findex.html", "/etc/passwd"],
)
def test_nothing_outside_the_viewer_is_served(get: Get, token: str, path: str) -> None:
    answer = get(f"/netron/{token}/light/{path}")
    assert answer.status == 404
    assert answer.text == "Not found."
    assert (netron.root() / "../streamlit/static/index.html").exists()


def test_a_wrong_token_opens_nothing(get: Get) -> None:
    for address in ("/netron/guess/light/index.html", "/netron/guess/light/data/x", "/files/guess"):
        answer = get(address)
        assert answer.status == 404
        assert "expired" in answer.text


def test_a_lease_ends_with_its_tab_its_file_or_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases()
    file = tmp_path / "model.onnx"
    file.touch()
    first, second = leases.put(file, "a", "tab-1"), leases.put(file, "a", "tab-2")
    assert first != second
    assert leases.put(file, "a", "tab-1") == first
    leases.drop("tab-1")
    assert leases.get(first) is None
    assert leases.get(second) is not None
    file.unlink()
    assert leases.get(second) is None
    monkeypatch.setattr(netron, "LIFE", -1.0)
    leases.put(file, "b", "tab-3")
    assert len(leases) == 1
