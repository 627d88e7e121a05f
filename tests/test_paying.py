"""Widths that pay, by tables written by hand."""

from __future__ import annotations

from core.latency_table import LatencyTable, Operator
from core.layers import Feed, Group, Profile
from core.paying import paying_widths
from core.predict import shape_of
from core.ranks import Shape
from tests.profiles import Flow, layer, whole


def chain() -> Profile:
    """Two 1×1 convolutions, 64 channels between them."""
    layers = (
        layer("a", "conv", (3, 64), 1, (8, 8), "a", (Feed("input"),)),
        layer("b", "conv", (64, 8), 1, (8, 8), "b", (Feed("a"),)),
    )
    flow = Flow(3 * 64 * 4)
    flow.layer("Conv", layers[1], flow.layer("Conv", layers[0], 0))
    groups = (Group("input", 3, (), "The image."), Group("a", 64, ("a",)), Group("b", 8, ("b",)))
    return whole(layers, groups, flow)


def in_blocks(block: int) -> LatencyTable:
    """A runtime that takes as long for 52 channels as for 64, if they are computed 16 at a time."""
    profile = chain()
    times = {}
    for width in range(1, 65):
        up = -(-width // block) * block
        for row, into, out in ((profile.layer("a"), 3, width), (profile.layer("b"), width, 8)):
            times[Operator(shape_of(row, into, out))] = up / 1000
    return LatencyTable(times)


def test_only_whole_blocks_pay() -> None:
    assert paying_widths(chain(), "a", in_blocks(16)) == (64, 48, 32, 16)
    assert paying_widths(chain(), "a", in_blocks(16), 8) == (64, 48, 32, 16)
    assert paying_widths(chain(), "a", in_blocks(1), 8) == (64, 56, 48, 40, 32, 24, 16, 8)
    assert paying_widths(chain(), "a", in_blocks(64), 8) == (64,)


def test_what_is_slower_than_a_wider_one_is_left_out() -> None:
    table = in_blocks(16)
    slow = Operator(Shape("conv", 32, 8, (1, 1), 1, (8, 8), (8, 8)))
    assert slow in table.times
    assert paying_widths(chain(), "a", LatencyTable({**table.times, slow: 0.2}), 16) == (64, 48, 16)
