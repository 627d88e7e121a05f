"""Tune in Chromium, with a forecast: from a slider's move to its repaint, and from its release to the redrawn chart.

    python -m benchmarks.tune_latency [layers] [releases]

Goals: 35 ms and 300 ms at the 95th percentile with 60 layers. Needs Chromium; prints one table and writes
benchmarks/results/tune_latency.json. On a machine that does other work too, `chrt -r 5` before the command gives the
server and the browser the cores.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import FLAGS, chromium_path, running_studio
from tests.forecasts import write_forecast
from tests.profiles import resnet
from tests.workspaces import write_workspace

RESULT = Path(__file__).parent / "results" / "tune_latency.json"

# Every input event is timed from its own time stamp to the task after the next painted frame.
WATCH_REPAINTS = """() => {
  window.repaints = [];
  const afterPaint = (done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  });
  document.addEventListener('input', (event) => {
    afterPaint(() => window.repaints.push(performance.now() - event.timeStamp));
  }, { capture: true });
}"""
# From the pointer's release until the frame is painted in which the mark of this recipe has moved in the chart.
WATCH_RELEASE = """() => {
  window.released = null;
  const mark = () => document.querySelector('.js-plotly-plot .shapelayer path')?.getAttribute('d');
  const before = mark();
  document.addEventListener('pointerup', (event) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { window.released = performance.now() - event.timeStamp; };
    const look = () => {
      if (mark() === before || mark() === undefined) requestAnimationFrame(look);
      else channel.port2.postMessage(0);
    };
    look();
  }, { capture: true, once: true });
}"""


def drag(page: Page, name: str, start: float, end: float, moves: int) -> None:
    """Hold the slider's thumb and move it from one share of its track to another."""
    slider = page.get_by_role("slider", name=name)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    for step in range(1, moves + 1):
        page.mouse.move(box["x"] + (start + (end - start) * step / moves) * box["width"], y)
    page.mouse.up()


def measure(page: Page, address: str, releases: int) -> dict[str, list[float]]:
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_role("link", name="Tune").first.click()
    page.wait_for_selector(".js-plotly-plot .main-svg")
    drag(page, "Ratio, all layers", 0.0, 0.3, 3)  # puts the step into the recipe and warms everything up
    page.wait_for_selector(".js-plotly-plot .shapelayer path", state="attached")
    page.wait_for_timeout(1500)
    page.evaluate(WATCH_REPAINTS)
    released, at = [], 0.3
    for number in range(releases):
        page.evaluate(WATCH_RELEASE)
        goal = 0.25 + 0.4 * (
            0.5 * (number % 2) + 0.5 * number / releases
        )  # never twice: the browser keeps what it knows
        drag(page, "Ratio, all layers", at, goal, 12)
        at = goal
        page.wait_for_function("window.released !== null", polling=50)
        released.append(page.evaluate("window.released"))
        page.wait_for_timeout(300)
    return {"repaint_ms": page.evaluate("window.repaints"), "release_ms": released}


def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    releases = int(sys.argv[2]) if len(sys.argv) > 2 else 25
    profile = resnet(max(1, round((layers - 2) / 6)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        space = write_workspace(Path(folder), profile, ("recipe: 1\nsteps:\n- quantize: {}\n",))
        write_forecast(space, profile)
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        with running_studio(Path(folder)) as address:
            found = measure(browser.new_page(viewport={"width": 1280, "height": 900}), address, releases)
        browser.close()
    rows = {name: [len(ms), *(round(float(np.percentile(ms, p)), 1) for p in (50, 95))] for name, ms in found.items()}
    print(f"{len(profile.tunable)} layers, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, (count, p50, p95) in rows.items():
        print(f"{name:12} n={count:4d}  p50 {p50:7.1f} ms  p95 {p95:7.1f} ms")
    own = os.sched_getscheduler(0) != os.SCHED_OTHER
    about = {"layers": len(profile.tunable), "load": os.getloadavg()[0], "cores": os.cpu_count(), "own_cores": own}
    table = {name: dict(zip(("n", "p50", "p95"), row, strict=True)) for name, row in rows.items()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(about | table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
