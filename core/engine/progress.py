"""Reports for the pieces of a longer piece of work. A report is `report(fraction in [0, 1], message, **numbers)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Report = Callable[..., None]


def part(report: Report, low: float, high: float) -> Report:
    """A report for a piece of the work that spans `low` to `high` of the whole."""

    def scaled(fraction: float, message: str, **numbers: object) -> None:
        report(low + (high - low) * fraction, message, **numbers)

    return scaled


def stages(report: Report, weights: Sequence[float]) -> Iterator[Report]:
    """One report per stage, in order; each moves the whole by its share of the weights."""
    total, start = sum(weights), 0.0
    for weight in weights:
        yield part(report, start / total, (start + weight) / total)
        start += weight


def titled(report: Report, title: str) -> Report:
    """A report whose messages begin with `title`."""

    def prefixed(fraction: float, message: str, **numbers: object) -> None:
        report(fraction, f"{title}: {message}", **numbers)

    return prefixed
