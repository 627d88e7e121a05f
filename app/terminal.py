"""What `cnn-studio` prints: one line of progress, tables, and a candidate's scores."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from app import tables
from core.candidate import Candidate

EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class Progress:
    """One line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.printed = 0.0

    def __call__(self, fraction: float, message: str, **numbers: object) -> None:
        if self.terminal:
            print(f"\r\033[K{fraction:4.0%}  {message}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.printed >= EVERY:
            self.printed = time.monotonic()
            print(f"{fraction:4.0%}  {message}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_candidate(made: Candidate) -> None:
    scores = made.scores
    rows = [("agreement", f"{tables.percent(scores.agreement.value)}  {tables.interval(scores.agreement)}")]
    if scores.accuracy:
        rows.insert(0, ("accuracy", f"{tables.percent(scores.accuracy.value)}  {tables.interval(scores.accuracy)}"))
    rows += [
        ("size", tables.size(scores.size_bytes)),
        *([("compressed", tables.size(scores.packed_bytes))] if scores.packed_bytes else []),
        ("parameters", f"{scores.params:,}"),
        ("MACs", f"{scores.macs:,}"),
    ]
    for x in scores.latency:
        speed = f"{tables.times(x.speedup)} ({tables.times(x.speedup_low)} to {tables.times(x.speedup_high)})"
        rows.append((f"batch {x.batch}, threads {x.threads}", f"{time_of(x.latency_ms)}  {speed}"))
    print_table((made.title, "verified on the exported file"), rows)
    for skip in made.skipped:
        print(f"kept: {skip.layer}: {skip.reason}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def time_of(milliseconds: float | None) -> str:
    return "" if milliseconds is None else tables.milliseconds(milliseconds)


def print_trials(found: Mapping[str, Any]) -> None:
    """What a search tried, in order, and why it ended."""
    head = ("tried", f"{found['judge']} lost, points", "size", "MACs", "speed", "")
    print_table(
        head, [(*cells, "" if row["kept"] else row["why"]) for row, cells in tables.trial_rows(found["trials"])]
    )
    allowed = f"Allowed are {100 * found['drop']:g} points of {found['judge']}"
    print(
        f"\nLosses are expected from answers to {found['images']:,} validation images. {allowed}. {found['reason']}\n"
    )
