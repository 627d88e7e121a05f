"""Which settings make a layer slower, worked out by hand."""

from __future__ import annotations

import pytest

from app.slower_rows import slower_data
from core.latency_table import INTEGER, LatencyTable, Operator
from core.predict import shape_of
from core.ranks import factors, refusal
from core.recipe import Step
from tests.profiles import resnet

PROFILE = resnet(1)
CONV, DEEP = PROFILE.layer("layer1.0.conv1"), PROFILE.layer("layer3.0.conv2")
SHAPES = {layer.name: shape_of(layer, layer.in_channels, layer.out_channels) for layer in PROFILE.tunable}


def test_integers_that_take_longer_are_told_with_their_share_and_others_are_not() -> None:
    times = {Operator(shape): 1.0 for shape in SHAPES.values()}
    times |= {Operator(shape, INTEGER): 0.5 for shape in SHAPES.values()}
    times[Operator(SHAPES[CONV.name], INTEGER)] = 1.25
    found = slower_data(PROFILE, LatencyTable(times), Step("quantize"))
    assert found["settings"] == [8.0, 32.0]
    alike = {name: [1.25, 1.0] for name, shape in SHAPES.items() if shape == SHAPES[CONV.name]}
    assert found["rows"] == alike
    assert CONV.name in alike
    assert slower_data(PROFILE, LatencyTable(times), Step("quantize", {"mode": "float16"}))["rows"] == {}
    assert slower_data(PROFILE, LatencyTable(times), Step("prune_channels"))["rows"] == {}


def test_factors_are_read_where_the_layer_is_split_and_count_nothing_where_it_is_not() -> None:
    """Factors of no measured family take their MACs at the table's mean speed, here slow because of one row."""
    deep, conv = SHAPES[DEEP.name], SHAPES[CONV.name]
    times = LatencyTable({Operator(deep): 1.0, Operator(conv): 99.0})
    found = slower_data(PROFILE, times, Step("factorize", {"rank": 0.5}))
    share = dict(zip(found["settings"], found["rows"][DEEP.name], strict=True))
    assert share[1.0] == 1.0
    rank = next(x for x in share if 0.2 < x < 0.3)
    split = sum(part.macs for part in factors(deep, "spatial_svd", rank))
    assert share[rank] == pytest.approx(100 * split / (deep.macs + conv.macs), abs=1e-3)
    refused = next(x for x in share if 0.9 < x < 1)
    assert refusal(deep, "spatial_svd", refused)
    assert share[refused] == 1.0
    assert CONV.name not in found["rows"]  # so slow that any factor is faster
