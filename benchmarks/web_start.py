"""How fast the studio opens and how much memory its web process takes.

    python benchmarks/web_start.py [--runs 5]

From the start of the process to the first page drawn in Chromium (goal: 2 s), and the resident memory after every page
was opened once (goal: 150 MB). The workspace holds the first sample and no job runs: only the web process is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("", "inspect", "tune", "runs", "compare", "export")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(browser: Browser, home: str, *, fill: bool = False) -> dict[str, float]:
    """Seconds until the server answers and until the first page shows its title; MB of memory after all pages."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "server.py"), f"--server.port={port}"]
    environment = {**os.environ, "CNN_STUDIO_HOME": home}
    start = time.perf_counter()
    server = subprocess.Popen(
        [*command, "--server.headless=true"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    page = browser.new_page()
    try:
        up = wait(f"http://127.0.0.1:{port}/_stcore/health", start)
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_role("heading", level=1).first.wait_for()
        drawn = time.perf_counter() - start
        for name in PAGES:
            page.goto(f"http://127.0.0.1:{port}/{name}")
            page.get_by_role("heading", level=1).first.wait_for()
        while fill and not list(Path(home).glob("models/*/baseline-*.json")):
            time.sleep(0.5)  # the studio opens its first sample in an empty workspace
        memory = psutil.Process(server.pid).memory_info().rss / 1e6
    finally:
        page.close()
        server.terminate()
        server.wait(10)
    return {"server_s": up, "first_page_s": drawn, "memory_mb": memory}


def wait(url: str, start: float) -> float:
    while time.perf_counter() - start < 60:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return time.perf_counter() - start
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise SystemExit("The studio did not start within 60 s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with tempfile.TemporaryDirectory() as home:
            measure(browser, home, fill=True)
            rows = [measure(browser, home) for _ in range(runs)]
        browser.close()
    table = {name: sorted(row[name] for row in rows) for name in rows[0]}
    for name, values in table.items():
        print(f"{name:14} median {statistics.median(values):7.2f}   min {values[0]:7.2f}   max {values[-1]:7.2f}")
    result = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", **table}
    (ROOT / "benchmarks" / "results" / "web_start.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
