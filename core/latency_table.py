"""Measured operator times of this machine and runtime, keyed by shape and type: instant latency of any recipe.

A whole model takes slope × (sum of what its operators add, each measured behind one that makes its input) + intercept:
sums and pools between them have no row, so the affine step is mandatory (nn-Meter, Zhang et al. 2021, and HAWQ-V3 both
keep such tables). Widths in between are read from the block they are computed in: a runtime that works in blocks of 16
channels gains nothing from 64 → 52, and all it can from 64 → 48.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.ranks import Shape

INTEGER, FLOAT = "int8", "float32"
BLOCK = 8  # channels computed at once, where it was not measured
EVEN = 4  # channels that a fast layout's steps hold


@dataclass(frozen=True)
class Operator:
    """One row's key: a convolution or linear layer at one width, in one number type."""

    shape: Shape
    type: str = FLOAT

    @property
    def family(self) -> Operator:
        """The same operator at any width."""
        s = self.shape
        groups = 0 if s.kind == "depthwise" else s.groups
        return Operator(Shape(s.kind, 0, 0, s.kernel, groups, s.in_size, s.out_size, s.bias), self.type)


@dataclass(frozen=True)
class Blocks:
    """How a runtime computes a convolution's channels."""

    inputs: int = BLOCK  # at once; a part of a block takes as long as all of it
    outputs: int = BLOCK
    odd_inputs: float = 1.0  # times as long where they are no multiple of EVEN: fast layouts cannot hold them
    odd_outputs: float = 1.0

    def filled(self, into: int, out: int) -> tuple[int, int]:
        """What is computed. Fewer inputs than a block, as of an image, are not filled up."""
        return _filled(into, self.inputs if into > self.inputs else BLOCK), _filled(out, self.outputs)

    def odd(self, into: int, out: int) -> float:
        """Times as long as the whole blocks take."""
        inputs = self.odd_inputs if into % EVEN and into > self.inputs else 1.0
        return max(inputs, self.odd_outputs if out % EVEN else 1.0)


def _filled(channels: int, block: int) -> int:
    return -(-channels // block) * block


@dataclass(frozen=True)
class LatencyTable:
    """`times` in ms per call; `blocks` by number type. `original_ms` is the uploaded file's own time, which an export
    of it need not have: norms are folded there, and copies laid out anew."""

    times: Mapping[Operator, float]
    slope: float = 1.0
    intercept: float = 0.0
    threads: int = 1
    batch: int = 1
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    machine: str = ""
    original_ms: float | None = None

    def operator(self, shape: Shape, bits: float = 32.0) -> float:
        """Milliseconds of one operator: measured, it or the whole blocks that it is computed in, or read between the
        measured widths of its family.

        Where its family was never measured, by MACs from the table's own mean speed. Below 8 bits it runs as int8.
        """
        key = Operator(shape, INTEGER if bits <= 8 else FLOAT)
        known = self.times.get(key)
        if known is not None:
            return known
        into, out = self._blocks(key).filled(shape.in_channels, shape.out_channels)
        odd = self._blocks(key).odd(shape.in_channels, shape.out_channels)
        known = self.times.get(replace(key, shape=replace(shape, in_channels=into, out_channels=out)))
        if known is not None:
            return odd * known
        fitted = self._fits.get(key.family)
        if fitted is None:
            return odd * shape.macs / self._speed
        return odd * max(sum(a * b for a, b in zip(fitted, self._features(key), strict=True)), 0.0)

    def all_in(self, kind: str) -> LatencyTable:
        """The table of a network all of whose operators are of this type, whatever bits are asked for."""
        rows = {key.shape: ms for key, ms in self.times.items() if key.type == kind}
        return replace(self, times={Operator(shape, t): ms for shape, ms in rows.items() for t in (FLOAT, INTEGER)})

    def whole(self, operators_ms: float) -> float:
        """Milliseconds of a model whose operators sum to `operators_ms`."""
        return self.slope * operators_ms + self.intercept

    def operators(self, whole_ms: float) -> float:
        """The sum of operators that a model of `whole_ms` has."""
        return (whole_ms - self.intercept) / self.slope

    def _blocks(self, key: Operator) -> Blocks:
        full = key.shape.kind == "conv" and key.shape.groups == 1
        return self.blocks.get(key.type, Blocks()) if full else Blocks()

    def _features(self, key: Operator) -> tuple[float, ...]:
        into, out = map(float, self._blocks(key).filled(key.shape.in_channels, key.shape.out_channels))
        return 1.0, into, out, into * out

    @cached_property
    def _fits(self) -> dict[Operator, list[float]]:
        """Family → coefficients over (1, inputs, outputs, inputs × outputs), least squares in relative error."""
        rows: dict[Operator, list[tuple[tuple[float, ...], float]]] = {}
        for key, time in self.times.items():
            rows.setdefault(key.family, []).append((self._features(key), time))
        found = {}
        for family, pairs in rows.items():
            features = np.array([f for f, _ in pairs])
            times = np.array([t for _, t in pairs])
            scale = features.max(0)
            solved = np.linalg.lstsq(features / scale / times[:, None], np.ones(len(times)), rcond=None)[0]
            found[family] = (solved / scale).tolist()
        return found

    @cached_property
    def _speed(self) -> float:
        """MACs per ms."""
        return sum(key.shape.macs for key in self.times) / max(sum(self.times.values()), 1e-9)

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(key.shape), "type": key.type, "ms": ms} for key, ms in self.times.items()]
        blocks = {kind: asdict(found) for kind, found in self.blocks.items()}
        return {
            "times": rows, "slope": self.slope, "intercept": self.intercept, "threads": self.threads,
            "batch": self.batch, "blocks": blocks, "machine": self.machine, "original_ms": self.original_ms,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LatencyTable:
        times = {}
        for row in values["times"]:
            row = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            ms, kind = row.pop("ms"), row.pop("type")
            times[Operator(Shape(**row), kind)] = ms
        blocks = {kind: Blocks(**row) for kind, row in values.get("blocks", {}).items()}
        kept = {k: v for k, v in values.items() if k != "block"}  # what tables had before blocks were measured
        return cls(**{**kept, "times": times, "blocks": blocks})


def fit_affine(sums: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, intercept) of whole-model times over operator sums, least squares in relative error.

    The intercept may be negative: each operator alone pays for its own call. One model alone gives a slope only.
    """
    if len(whole) < 2 or np.ptp(sums) == 0:
        return float(whole.sum() / sums.sum()), 0.0
    weighted = np.stack([sums, np.ones_like(sums)], 1) / whole[:, None]
    slope, intercept = np.linalg.lstsq(weighted, np.ones(len(whole)), rcond=None)[0]
    return float(slope), float(intercept)
