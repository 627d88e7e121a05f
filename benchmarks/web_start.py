"""How fast the studio opens and how much memory its web process takes, beside an empty page of Streamlit alone.

    python -m benchmarks.web_start [--runs 7]

From the start of the process to the first page drawn in Chromium (goal: 2 s), and the resident memory then and after
every page was opened once (goal: 150 MB). The workspace holds the first sample and no job runs: only the web process is
measured. The control is `streamlit run` of a script with one title, under the studio's own settings: what Streamlit and
the browser take by themselves. Both are started in turn, so that the ratio holds on a busy machine too; there
`chrt -r 5` before the command gives both a core of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

from tests.browser.conftest import FLAGS, chromium_path, free_port

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("library", "inspect", "tune", "runs", "compare", "export")
SETTLE_S = 1.0  # what a page still does after its title is there counts as memory too
STUDIO = ["-m", "app.cli", "studio", "--no-browser", "--port"]


def measure(browser: Browser, command: Sequence[str], home: Path, pages: Sequence[str] = ()) -> dict[str, float]:
    """Seconds until the server answers and until the first page shows its title, MB then and after `pages`."""
    port = free_port()
    environment = {**os.environ, "CNN_STUDIO_HOME": str(home)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address, page, start = f"http://127.0.0.1:{port}", browser.new_page(), time.perf_counter()
    server = subprocess.Popen([sys.executable, *command, str(port)], cwd=ROOT, env=environment, **quiet)  # type: ignore[call-overload]
    process = psutil.Process(server.pid)
    try:
        found = {"server_s": wait(f"{address}/_stcore/health", start)}
        page.goto(address, wait_until="commit")
        page.get_by_role("heading", level=1).first.wait_for()
        found |= {"first_page_s": time.perf_counter() - start, "first_page_cpu_s": sum(process.cpu_times()[:2])}
        for name in ("", *pages):
            if name:
                page.goto(f"{address}/{name}")
                page.get_by_role("heading", level=1).first.wait_for()
            time.sleep(SETTLE_S)
            found["memory_mb" if name else "first_page_mb"] = process.memory_info().rss / 1e6
    finally:
        page.context.close()
        server.terminate()
        server.wait(10)
    return found


def wait(url: str, start: float) -> float:
    while time.perf_counter() - start < 60:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return time.perf_counter() - start
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    raise SystemExit("The server did not start within 60 s.")


def fill(home: Path) -> None:
    """The first sample, opened and measured, as a first visit leaves it."""
    command = [sys.executable, "-m", "app.cli", "run", str(home / "recipe.yaml"), "--model", "shapes_resnet20"]
    (home / "recipe.yaml").write_text("recipe: 1\nsteps:\n- quantize: {}\n", encoding="utf-8")
    subprocess.run(
        [*command, "--data", "shapes", "--workspace", str(home), "--out", str(home / "out")], cwd=ROOT, check=True
    )


def bare(folder: Path) -> list[str]:
    """The command of an empty page under the studio's settings."""
    shutil.copytree(ROOT / "app" / ".streamlit", folder / ".streamlit")
    (folder / "empty.py").write_text("import streamlit as st\n\nst.title('Empty')\n", encoding="utf-8")
    return ["-m", "streamlit", "run", str(folder / "empty.py"), "--server.headless=true", "--server.port"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    rows: dict[str, list[dict[str, float]]] = {"streamlit": [], "studio": []}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        home, control = Path(folder, "home"), bare(Path(folder))
        home.mkdir()
        fill(home)
        for _ in range(runs):
            rows["streamlit"].append(measure(browser, control, home))
            rows["studio"].append(measure(browser, STUDIO, home, PAGES))
        browser.close()
    found = {who: {name: sorted(row[name] for row in some) for name in some[0]} for who, some in rows.items()}
    for who, table in found.items():
        for name, values in table.items():
            middle = statistics.median(values)
            print(f"{who:10} {name:17} median {middle:7.2f}   min {values[0]:7.2f}   max {values[-1]:7.2f}")
    pairs = [s["first_page_s"] / b["first_page_s"] for b, s in zip(*rows.values(), strict=True)]
    print(f"first page, studio over Streamlit alone, in turn: median {statistics.median(pairs):.2f}")
    own = "a core of its own" if os.sched_getscheduler(0) != os.SCHED_OTHER else "a shared core"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {own}"
    result = {"machine": machine, "studio_over_streamlit": sorted(pairs), **found}
    (ROOT / "benchmarks" / "results" / "web_start.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
