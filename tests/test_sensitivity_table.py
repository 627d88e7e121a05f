"""Curves by hand and against scikit-learn; files that survive a kill."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from core.sensitivity_table import (
    Cell,
    SensitivityTable,
    append_lines,
    pool_violators,
    read_lines,
    read_table,
    row_of,
    severity,
)


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12))
def test_pooling_is_isotonic_regression(values: list[float]) -> None:
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), np.array(values, np.float64))
    np.testing.assert_allclose(pool_violators(np.array(values, np.float64)), expected, atol=1e-6)


def make_table(*cells: Cell) -> SensitivityTable:
    return SensitivityTable({}, {(c.layer, c.technique, c.level): c for c in cells})


def test_a_curve_is_a_power_law_between_its_points_and_a_square_law_below() -> None:
    table = make_table(
        Cell("a", "prune_channels", 0.25, kl=0.1), Cell("a", "prune_channels", 0.5, kl=0.4), Cell("b", "factorize", 0.5)
    )
    assert table.kl("a", "prune_channels", 0.25) == pytest.approx(0.1)
    assert table.kl("a", "prune_channels", 0.125) == pytest.approx(0.1 / 4)
    assert table.kl("a", "prune_channels", 0.25 * 2**0.5) == pytest.approx(0.2)  # the middle of both logarithms
    assert table.kl("a", "prune_channels", 1.0) == pytest.approx(1.6)  # goes on with the last slope
    assert table.kl("a", "prune_channels", 0.0) == 0.0
    assert table.kl("b", "factorize", 0.5) is None  # tier 0 only
    assert table.kl("c", "quantize", 32) == 0.0


def test_curves_are_monotone_in_damage_not_in_level() -> None:
    """Fewer bits and a lower rank are more damage; the violation at 6 bits is pooled with 4."""
    table = make_table(*[Cell("a", "quantize", b, kl=k) for b, k in ((8, 0.01), (6, 0.09), (4, 0.04), (2, 1.0))])
    assert [table.kl("a", "quantize", b) for b in (8, 6, 4, 2)] == pytest.approx([0.01, 0.06, 0.06, 1.0])
    assert severity("factorize", 0.2) > severity("factorize", 0.9)


def test_zero_divergence_stays_finite() -> None:
    table = make_table(Cell("a", "prune_weights", 0.3, kl=0.0), Cell("a", "prune_weights", 0.9, kl=0.5))
    assert table.curves[("a", "prune_weights")].log_kl[0] == pytest.approx(log(1e-9))


def test_tiers_meet_in_one_cell_and_a_half_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.jsonl"
    assert read_table(path) is None
    append_lines(path, [{"images": 64}, row_of(Cell("a", "quantize", 4, fisher=0.5, weight_error=0.1))])
    append_lines(path, [row_of(Cell("a", "quantize", 4, kl=0.2, cosine=0.9))])
    with path.open("a") as file:
        file.write('{"layer": "b", "technique": "quan')  # killed here
    table = read_table(path)
    assert table is not None
    assert table.about == {"images": 64}
    assert list(table.cells.values()) == [Cell("a", "quantize", 4, fisher=0.5, weight_error=0.1, kl=0.2, cosine=0.9)]
    assert table.progress(2) == 0.5
    append_lines(path, [{"layer": "b", "technique": "quantize", "level": 8, "kl": 0.1}])
    assert [row.get("layer") for row in read_lines(path)] == [None, "a", "a", "b"]


def test_a_repaired_recipe_reads_what_repair_leaves_where_that_was_measured() -> None:
    cells = (
        Cell("a", "prune_channels", 0.5, kl=0.1, kl_repaired=0.02),
        Cell("b", "prune_channels", 0.5, kl=0.3),
        Cell("a", "quantize", 4, kl=0.05),
    )
    table = SensitivityTable({}, {(c.layer, c.technique, c.level): c for c in cells})
    for known, (first, *others) in ((table, (0.1, 0.3, 0.05)), (table.repaired, (0.02, 0.3, 0.05))):
        assert known.kl("a", "prune_channels", 0.5) == pytest.approx(first)
        found = known.kl("b", "prune_channels", 0.5), known.kl("a", "quantize", 4)
        assert found == pytest.approx(others)
