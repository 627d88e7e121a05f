"""Plans like one that was measured: by hand, and through a forecast whose map they do not fit."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.alike import DOUBT, LITTLE, corrections, likeness, ratios, traits
from core.calibration import Calibration, Point
from core.forecast import Forecast
from core.nats import Nats, total
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, Plan
from tests.forecasts import make_table
from tests.profiles import resnet

PROFILE = resnet(2)
TABLE = make_table(PROFILE)
LAYERS = [x.name for x in PROFILE.tunable]


def test_where_nats_are_spent_by_hand() -> None:
    np.testing.assert_allclose(traits(np.array([[9.0, 16.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


def test_likeness_by_hand() -> None:
    """The same plan 1; at e times the nats exp(-1/2); on other layers 0; half on the same √½, to the 4th."""
    known = traits(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    found = likeness(known, np.array([2.0, 2 * exp(1), 2.0, 2.0]), np.array([1.0, 0.0]), 2.0)
    np.testing.assert_allclose(found, [1.0, exp(-0.5), 0.0, 0.25])


def test_a_loss_is_corrected_by_hand() -> None:
    """One plan just like it lost twice what was mapped, the small amount added to both."""
    known = ratios(np.array([2 * (0.1 + LITTLE) - LITTLE]), np.array([0.1]))
    np.testing.assert_allclose(known, [log(2)])
    found = corrections(np.array([0.05, 0.05]), np.array([[1.0], [0.0]]), known)
    np.testing.assert_allclose(found, [(0.05 + LITTLE) * 2 ** (1 / (1 + DOUBT)) - LITTLE, 0.05])
    assert corrections(np.array(0.0), np.array([1.0]), np.array([-5.0])) == 0.0


def spread(technique: str, level: float) -> Plan:
    return {(name, technique): level for name in LAYERS}


def points(technique: str, factor: float, levels: tuple[float, ...]) -> list[Point]:
    """A twentieth of the nats lost, or `factor` times that."""
    found = []
    for level in levels:
        kl = float(Nats(TABLE).totals(Nats(TABLE).rows([spread(technique, level)]), {})[0])
        found.append(Point(kl, factor * 0.05 * kl, "calibration", plan=spread(technique, level)))
    return found


def test_what_was_run_tells_most_of_what_is_like_it() -> None:
    """Bits lose as the map says. A run of pruned weights lost a third: others of them are foretold lower than before,
    the nearer the more, and bits as they were."""
    bits = points("quantize", 1.0, (2, 3, 4, 5, 6, 7, 8))
    before = Forecast(PROFILE, TABLE, tuple(bits), baseline=0.9)
    run = points("prune_weights", 1 / 3, (0.5,))
    after = Forecast(PROFILE, TABLE, (*bits, *run), baseline=0.9)

    def moved(plan: Plan) -> float:
        loss, was = (0.9 - (f.predict_plan(plan).value or 0.0) for f in (after, before))
        return loss / was

    near, far = moved(spread("prune_weights", 0.55)), moved(spread("prune_weights", 0.9))
    assert near < 0.7
    assert near < far < 1
    assert moved(spread("quantize", 4)) > 0.8


def test_intervals_know_of_likeness() -> None:
    """Of two halves of a network one loses three times as much at the same nats: each is foretold by its own kind."""
    nats, known, plans = Nats(TABLE), [], []
    for level in np.linspace(0.3, 0.8, 12).tolist():
        for half, factor in ((LAYERS[:7], 1.0), (LAYERS[7:], 3.0)):
            plans.append({(name, "prune_weights"): level for name in half})
            kl = float(nats.totals(nats.rows(plans[-1:]), {})[0])
            known.append(Point(kl, factor * 0.02 * kl, "calibration"))
    blind, seeing = Calibration(tuple(known)), Calibration(tuple(known), 0, nats.traits(nats.rows(plans), {}))
    off = [np.abs(c.left_out - c.drop).mean() for c in (blind, seeing)]
    assert off[1] < 0.75 * off[0]
    assert seeing.width(0.02) < 0.9 * blind.width(0.02)


def test_cards_and_sliders_foretell_the_same() -> None:
    """What a card adds up from sums is what the plan itself gives."""
    known = tuple(points("prune_weights", 0.5, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)))
    forecast = Forecast(PROFILE, TABLE, known, baseline=0.9)
    plan = spread("prune_weights", 0.45)
    found = forecast.predict_kl(forecast.total(forecast.sums(plan, False), False), False, forecast.trait(plan, False))
    assert found == replace(forecast.predict_plan(plan), reason="")
    recipe = Recipe((Step("prune_weights", {"scope": "layer", "sparsity": 0.45, "repair": False}),))
    assert forecast.predict(recipe).value == found.value


@given(
    st.dictionaries(
        st.sampled_from([(name, technique) for name in LAYERS for technique in ("prune_weights", "quantize")]),
        st.sampled_from([0, 1, 2]),
    ),
    st.sampled_from([(1.0, 1.0), (0.3, 0.6), (0.1, 1.0)]),
)
def test_rows_and_sums_add_up_alike(chosen: dict[tuple[str, str], int], way: tuple[float, float]) -> None:
    plan, nats, ways = {key: LEVELS[key[1]][i] for key, i in chosen.items()}, Nats(TABLE), {"prune_weights": way}
    by_rows = float(nats.totals(nats.rows([plan]), ways)[0])
    assert by_rows == pytest.approx(total(nats.sums(plan, ways), ways), abs=1e-12)
    assert nats.rows([{("gone", "quantize"): 32.0}]).sum() == 0
