"""Timing: the arithmetic with a clock of our own, and one real pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.engine import latency
from core.engine.formats import onnx_writer
from tests.tiny import CARD, tiny_model


class Clock:
    """A clock that only moves when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, durations: Callable[[int], float]) -> Callable[[], None]:
        runs = iter(range(10**9))

        def run() -> None:
            self.now += durations(next(runs))

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def test_medians_and_ratios_by_hand(clock: Clock) -> None:
    """Runs of 10 ms and 4 ms, but every tenth run of the original is interrupted."""
    row = latency._row(
        clock.work(lambda n: 0.03 if n % 10 == 0 else 0.01), clock.work(lambda n: 0.02 if n > 10**6 else 0.004), 1, 1
    )
    assert (row.original_ms, row.latency_ms) == pytest.approx((10.0, 4.0))
    assert (row.speedup, row.speedup_low) == pytest.approx((2.5, 2.5))
    assert row.runs >= latency.FEWEST


def test_the_spread_is_the_10th_and_90th_percentile(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    warm = latency.WARM_UP
    ratios = np.linspace(1, 3, latency.FEWEST)
    row = latency._row(
        clock.work(lambda n: 0.1 * ratios[n - warm] if n >= warm else 0.1), clock.work(lambda n: 0.1), 8, 2
    )
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    assert (row.speedup_low, row.speedup, row.speedup_high) == pytest.approx((low, middle, high))
    assert (row.batch, row.threads, row.runs) == (8, 2, latency.FEWEST)


def test_a_short_run_is_the_fastest_of_three(clock: Clock) -> None:
    """1 ms, but every second run is interrupted for 9 ms: the fastest of three never is."""
    row = latency._row(clock.work(lambda n: 0.001 + 0.009 * (n % 2)), clock.work(lambda n: 0.001), 1, 1)
    assert (row.original_ms, row.speedup_high) == pytest.approx((1.0, 1.0))


def test_runs_alternate_so_that_neither_is_always_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += 0.01

        return run

    monkeypatch.setattr(latency, "SECONDS", 0.0)
    latency._row(note("a"), note("b"), 1, 1)
    assert order[2 * latency.WARM_UP :][:8] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_it_stops_when_the_time_is_up_but_not_before_the_fewest(clock: Clock) -> None:
    slow = latency._row(clock.work(lambda n: 10.0), clock.work(lambda n: 10.0), 1, 1)
    quick = latency._row(clock.work(lambda n: 0.0051), clock.work(lambda n: 0.0051), 1, 1)
    assert slow.runs == latency.FEWEST
    assert quick.runs == pytest.approx(latency.SECONDS / 0.0102, abs=1)


def test_a_real_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.05)
    onnx_writer.export(tiny_model().module, CARD, tmp_path / "tiny.onnx")
    messages: list[str] = []
    rows = latency.compare(
        tmp_path / "tiny.onnx", tmp_path / "tiny.onnx", CARD, batches=(1, 8), threads=(1, 2),
        report=lambda fraction, message, **_: messages.append(message),
    )  # fmt: skip
    assert [(row.batch, row.threads) for row in rows] == [(1, 1), (1, 2), (8, 1), (8, 2)]
    assert all(0 < row.speedup_low <= row.speedup <= row.speedup_high for row in rows)
    assert all(row.latency_ms > 0 and row.original_ms > 0 for row in rows)
    assert messages[0] == "Timing at batch 1 on 1 thread"
