"""A real Chromium and a real studio on a free port. A console error or a request to elsewhere fails the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HARMLESS = ("ResizeObserver loop",)  # Chromium says so when a chart grows while it is laid out


def chromium_path() -> str:
    """Where Chromium is. Without one the tests skip, naming the package; in CI that is a failure."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    reason = "browser tests need Chromium: install the package chromium (apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def studio(workspace: Path) -> Iterator[str]:
    """The address of a running studio whose workspace is the session's `workspace`."""
    with running_studio(workspace) as address:
        yield address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_studio(workspace: Path) -> Iterator[str]:
    """A studio of its own on a free port, with this workspace."""
    port = free_port()
    log = (workspace / "server.log").open("wb")
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "server.py")]
    command += [f"--server.port={port}", "--server.headless=true", "--server.address=127.0.0.1"]
    server = subprocess.Popen(
        command, cwd=workspace, env={**os.environ, "CNN_STUDIO_HOME": str(workspace)}, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(address, server, workspace / "server.log")
        yield address
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def wait_until_up(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the studio did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test when anything is logged as an error or a request leaves this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(word in message.text for word in HARMLESS):
            problems.append(f"console: {message.text} ({message.location.get('url')})")

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: problems.append(f"script: {error}"))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("http://127.0.0.1", "data:", "blob:", "ws://127.0.0.1"))
            else problems.append(f"request to {request.url}")
        ),
    )
    yield opened
    context.close()
    assert not problems, "\n".join(problems)
