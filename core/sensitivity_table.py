"""The sensitivity table: layer × technique × level → how far the answers move. Plain records on disk, no tensor.

Tier 0 ranks (empirical Fisher, weight error; seconds); tier 1 measures: KL divergence of the softened answers from
the original's, in nats, on images without labels, with accuracy loss, SQNR and feature cosine from the same passes.

A curve is made monotone by pooling adjacent violators (PAVA, Ayer et al. 1955) on log KL, then read as a power law
between its points and as a square law below the first: small errors move KL with their square.

    models/<id>/sensitivity-<data id>.jsonl     a header, then one line per cell, appended as it is measured
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.catalog import CATALOG

Key = tuple[str, str]  # layer (for prune_channels: group), technique
Plan = Mapping[Key, float]  # what each layer gets: the level of each technique's dial

# In the order they are measured: the first of each gives a whole coarse table, the rest refine it.
LEVELS: dict[str, tuple[float, ...]] = {
    "prune_channels": (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875),
    "prune_weights": (0.5, 0.8, 0.3, 0.9, 0.7),
    "factorize": (0.5, 0.25, 0.75, 0.125, 0.375),
    "quantize": (4, 8, 2, 6, 3, 5),
}
SMALLEST_KL = 1e-9  # nats; below it float32 answers differ by rounding only


def severity(technique: str, level: float) -> float:
    """0 where the layer is left as it is, growing with damage: share removed, or the step of b-bit weights.

    >>> severity("prune_weights", 0.5), severity("factorize", 0.75), severity("quantize", 3), severity("quantize", 32)
    (0.5, 0.25, 0.25, 0.0)
    """
    if level == CATALOG[technique].neutral:
        return 0.0
    if technique == "quantize":
        return float(2.0 ** (1 - level))
    return 1 - level if technique == "factorize" else level


def pool_violators(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to `values` in squared error.

    >>> pool_violators(np.array([1.0, 3.0, 2.0, 4.0])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[tuple[float, int]] = []  # mean, count
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])


@dataclass(frozen=True)
class Cell:
    """One layer, one technique, one level; a measure that was not taken is None."""

    layer: str
    technique: str
    level: float
    fisher: float | None = None  # E[(gradient · change)²] over images, tier 0
    weight_error: float | None = None  # squared change of the weights, relative to their square, tier 0
    kl: float | None = None  # nats, tier 1
    kl_repaired: float | None = None  # the same with the layers behind removed channels solved again, each alone
    accuracy_loss: float | None = None  # share of images, on labels
    sqnr_db: float | None = None  # of the logits
    cosine: float | None = None  # of the features before the last layer, mean over images


@dataclass(frozen=True)
class Curve:
    """KL against severity, non-decreasing."""

    severities: tuple[float, ...]
    log_kl: tuple[float, ...]

    @cached_property
    def _log_severities(self) -> list[float]:
        return [log(s) for s in self.severities]

    def at(self, amount: float) -> float:
        """KL in nats at a severity; 0 at 0."""
        if amount <= 0:
            return 0.0
        x, xs, ys = log(amount), self._log_severities, self.log_kl
        if x <= xs[0] or len(xs) == 1:
            return exp(ys[0] + 2 * (x - xs[0]))
        right = min(bisect_left(xs, x), len(xs) - 1)
        slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
        return exp(ys[right - 1] + slope * (x - xs[right - 1]))


@dataclass(frozen=True)
class SensitivityTable:
    """`about` says what was measured on what; cells are keyed by layer, technique and level."""

    about: Mapping[str, Any]
    cells: Mapping[tuple[str, str, float], Cell]

    @cached_property
    def curves(self) -> dict[Key, Curve]:
        """Tier 1 only: (layer, technique) → monotone curve."""
        points: dict[Key, list[tuple[float, float]]] = {}
        for cell in self.cells.values():
            if cell.kl is not None:
                points.setdefault((cell.layer, cell.technique), []).append(
                    (severity(cell.technique, cell.level), log(max(cell.kl, SMALLEST_KL)))
                )
        curves = {}
        for key, found in points.items():
            amounts, values = zip(*sorted(found), strict=True)
            curves[key] = Curve(amounts, tuple(pool_violators(np.array(values)).tolist()))
        return curves

    @cached_property
    def repaired(self) -> SensitivityTable:
        """The table for recipes that make up for what they remove: where both were measured, what repair leaves."""
        left = {k: c if c.kl_repaired is None else replace(c, kl=c.kl_repaired) for k, c in self.cells.items()}
        return SensitivityTable(self.about, left)

    def kl(self, layer: str, technique: str, level: float) -> float | None:
        """KL in nats that this setting alone causes; None when its layer was not measured."""
        amount = severity(technique, level)
        if amount == 0:
            return 0.0
        curve = self.curves.get((layer, technique))
        return None if curve is None else curve.at(amount)

    def progress(self, expected: int) -> float:
        """Share of `expected` tier 1 cells that are measured."""
        return sum(cell.kl is not None for cell in self.cells.values()) / max(1, expected)


def sum_kl(table: SensitivityTable, plan: Plan) -> tuple[float, list[Key]]:
    """(summed KL in nats, the settings that are not in the table)."""
    found = {key: table.kl(*key, level) for key, level in plan.items()}
    return sum(v for v in found.values() if v is not None), [k for k, v in found.items() if v is None]


def read_table(path: Path) -> SensitivityTable | None:
    """None before the first line is written. A line cut off by a kill is left out: it is measured again."""
    rows = read_lines(path)
    if not rows:
        return None
    cells: dict[tuple[str, str, float], Cell] = {}
    known = {f.name for f in fields(Cell)}
    for row in rows[1:]:
        key = (row["layer"], row["technique"], row["level"])
        before = {k: v for k, v in asdict(cells[key]).items() if v is not None} if key in cells else {}
        cells[key] = Cell(**{**before, **{k: v for k, v in row.items() if k in known and v is not None}})
    return SensitivityTable(rows[0], cells)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; [] when there is none."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append whole lines; the half line that a kill may have left is cut off first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def row_of(cell: Cell) -> dict[str, Any]:
    """The line of a cell: measures not taken are left out."""
    return {k: v for k, v in asdict(cell).items() if v is not None}
