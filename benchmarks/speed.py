"""How long the studio thinks between a move and its numbers: costs, forecast, one budget, the whole front.

    python -m benchmarks.speed

Goals for 60 layers: costs and a forecast under 5 ms; one budget over 60 layers × 12 options under 100 ms. Processor
time, so that other work on the machine hardly counts; prints a table and writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.optimize  # noqa: F401 (half a second, once: not of the first budget)

from core.allocate import Item, allocate, front
from core.choices import Choices
from core.forecast import Forecast, Point
from core.predict import costs
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, Cell, SensitivityTable
from core.spending import PEAK
from tests.forecasts import make_table, make_times
from tests.profiles import resnet

RESULT = Path(__file__).parent / "results" / "speed.json"
LAYERS, OPTIONS = 60, 12
SHARES = (0.9, 0.75, 0.62, 0.5, 0.4, 0.3)  # of the original's cost
GOALS = {"costs": 5, "forecast": 5}  # ms; all else 100
STEPS = (Step("prune_channels"), Step("factorize"), Step("prune_weights", {"scope": "layer"}), Step("quantize"))
WIDTHS = tuple(i / OPTIONS for i in range(1, OPTIONS))


def timed(work: Iterable[Callable[[], object]]) -> list[float]:
    """Milliseconds of processor time of each."""
    found = []
    for job in work:
        gc.collect()
        start = time.process_time()
        job()
        found.append(1000 * (time.process_time() - start))
    return found


def knapsack(seed: int) -> list[Item]:
    """Layers as they are measured: sizes over three decades, losses that grow faster than savings, noise on both."""
    draw = np.random.default_rng(seed)
    items = []
    for i in range(LAYERS):
        removed = np.linspace(0, 0.92, OPTIONS)
        size, hurt = 10 ** draw.uniform(3, 6), 10 ** draw.uniform(-3, 1)
        losses = hurt * removed ** draw.uniform(1, 3) * draw.uniform(0.8, 1.2, OPTIONS) * (removed > 0)
        kept = size * (1 - removed) * draw.uniform(0.95, 1.05, OPTIONS)
        items.append(Item(f"x{i}", "prune_channels", tuple(removed), tuple(losses), tuple((c,) for c in kept)))
    return items


def budgets(items: list[Item]) -> list[float]:
    whole = sum(x.costs[0][0] for x in items)
    return [share * whole for share in SHARES]


def spendings(seed: int) -> dict[str, list[Callable[[], object]]]:
    """Kind → budgets of a residual network whose blocks share their trunk, as one slider asks for them in turn."""
    profile, draw = resnet(10), np.random.default_rng(seed)
    cells = {k: replace(x, kl=(x.kl or 0.0) * 10 ** draw.uniform(-1, 1)) for k, x in make_table(profile).cells.items()}
    for name in sorted({x.layer for x in cells.values() if x.technique == "prune_channels"}):
        hurt = 10 ** draw.uniform(-2, 0)
        cells |= {(name, "prune_channels", x): Cell(name, "prune_channels", x, kl=hurt * x**2) for x in WIDTHS}
    table, times = SensitivityTable({}, cells), make_times(profile)
    assert table.curves  # read once, with the forecast
    widths, bits = {"prune_channels": WIDTHS}, {"quantize": LEVELS["quantize"]}
    found: dict[str, list[Callable[[], object]]] = {}
    for kinds, levels in (
        (("macs",), widths),
        (("weight_bytes",), widths | bits),
        (("latency_ms",), widths | {"quantize": (8.0,)}),
        (("peak_bytes",), widths),
        (("macs", "weight_bytes"), widths),
        (("macs", "peak_bytes"), widths),
        (("macs", "weight_bytes", "latency_ms"), widths),
    ):
        made = Choices(profile, table, levels, latency=times)
        whole = {kind: made.of(kind, {}) for kind in kinds}
        shares = SHARES if PEAK not in kinds else SHARES[:3]  # no plan holds the network's input in less
        found[" and ".join(kinds)] = [partial(made.spend, {k: x * whole[k] for k in kinds}) for x in shares]
    return found


def main() -> None:
    profile = resnet(10)
    points = tuple(Point(10**x, min(0.8, 10**x / 5), "calibration") for x in np.linspace(-3, 1, 16))
    known = Forecast(profile, make_table(profile), points, 0.9)
    known.predict(Recipe(STEPS))
    problems = [knapsack(seed) for seed in range(10)]
    spent = [spendings(seed) for seed in range(4)]
    rows = {
        "costs": timed([lambda: costs(profile, Recipe(STEPS))] * 50),
        "forecast": timed([lambda: known.predict(Recipe(STEPS))] * 50),
        "one budget": timed(lambda x=x, b=b: allocate(x, [b]) for x in problems for b in budgets(x)),
        "front": timed(lambda x=x: front(x) for x in problems),
        "first spending": timed(jobs[0] for kinds in spent for jobs in kinds.values()),
        **{f"of {kind}": timed(job for kinds in spent for job in kinds[kind][1:]) for kind in spent[0]},
    }
    table = {}
    for name, found in rows.items():
        middle, high = (float(np.percentile(found, p)) for p in (50, 95))
        spread = {"p50_ms": middle, "p95_ms": high, "max_ms": max(found)}
        table[name] = {"n": len(found), **{word: round(ms, 2) for word, ms in spread.items()}}
        print(f"{name:40} n={len(found):3d}  p50 {middle:7.2f} ms  p95 {high:7.2f} ms  max {max(found):7.2f} ms")
    about = {"machine": platform.machine(), "layers": LAYERS, "options": OPTIONS, "load": os.getloadavg()[0]}
    RESULT.write_text(json.dumps(about | table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
