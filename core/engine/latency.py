"""How fast two files run beside each other: interleaved, so that whatever else the machine does hits both alike.

Each setting gets its own pair of sessions, a warm-up, and pairs of runs (original, candidate) whose order alternates.
The speed-up is the median of the ratios pair by pair, with their 10th and 90th percentile: its spread is part of the
result. A run shorter than a slice of the scheduler counts as the fastest of three in a row, since a single one that is
interrupted would be timed with whatever interrupted it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.candidate import Latency
from core.cards import ModelCard
from core.engine import runtime
from core.engine.context import Report, silent

WARM_UP = 5  # runs of each file that do not count
FEWEST = 30  # pairs, however slow
MOST = 400
SECONDS = 1.0  # spent on a setting once it has its fewest pairs
SHORT = 0.005  # seconds


def compare(
    original: Path,
    candidate: Path,
    card: ModelCard,
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (),
    report: Report = silent,
) -> tuple[Latency, ...]:
    """One row per batch size and number of threads (default: 1 and all). Raises ModelError when a file cannot be run.

    The input is noise: convolutions take as long for any finite numbers.
    """
    settings = [(b, t) for b in batches for t in (threads or sorted({1, runtime.all_threads()}))]
    rows = []
    for number, (batch, count) in enumerate(settings):
        report(number / len(settings), f"Timing at batch {batch} on {count} thread{'s' if count > 1 else ''}")
        x = np.random.default_rng(0).standard_normal((batch, *card.input_shape)).astype(np.float32)
        rows.append(_row(_runner(original, count, x), _runner(candidate, count, x), batch, count))
    report(1.0, "Timing done")
    return tuple(rows)


def _runner(file: Path, threads: int, x: NDArray[np.float32]) -> Callable[[], object]:
    session = runtime.open_file(file, threads)
    return lambda: runtime.run(session, x)


def _row(first: Callable[[], object], second: Callable[[], object], batch: int, threads: int) -> Latency:
    """Time `first` (original) and `second` (candidate) in pairs."""
    repeats = 3 if min(_seconds(work, WARM_UP) for work in (first, second)) < SHORT else 1
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + SECONDS
    while len(pairs) < FEWEST or (time.perf_counter() < end and len(pairs) < MOST):
        if len(pairs) % 2:
            candidate_s, original_s = _seconds(second, repeats), _seconds(first, repeats)
        else:
            original_s, candidate_s = _seconds(first, repeats), _seconds(second, repeats)
        pairs.append((original_s, candidate_s))
    original, candidate = np.array(pairs).T  # (2, pairs) seconds
    low, middle, high = np.percentile(original / candidate, (10, 50, 90))
    return Latency(
        batch=batch,
        threads=threads,
        latency_ms=float(np.median(candidate)) * 1e3,
        original_ms=float(np.median(original)) * 1e3,
        speedup=float(middle),
        speedup_low=float(low),
        speedup_high=float(high),
        runs=len(pairs),
    )


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats` runs in a row."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
