"""Widths that pay: a runtime that computes channels in blocks gains nothing between them, so that a width is left out
where a wider one takes no longer, by the operator times measured on this machine.
"""

from __future__ import annotations

from core.latency_table import LatencyTable
from core.layer_price import price
from core.layers import Layer, Profile
from core.meetings import touched

GAIN = 0.005  # of the time: a narrower width that saves less than this saves nothing


def paying_widths(
    profile: Profile, group: str, times: LatencyTable, multiple: int = 1, bits: float = 32.0
) -> tuple[int, ...]:
    """Widest first, in steps of `multiple`; the other groups are at their full width. `bits` 8: computed in int8."""
    full = profile.group(group).channels
    layers = touched(profile, (group, "prune_channels"))
    found: list[int] = []
    fastest = float("inf")
    for width in (full, *range((full - 1) // multiple * multiple, 0, -multiple)):
        time = sum(price(x, *_channels(profile, x, group, width), 1.0, bits, times)[2] for x in layers)
        if time < fastest * (1 - GAIN):
            found.append(width)
            fastest = time
    return tuple(found)


def _channels(profile: Profile, layer: Layer, group: str, width: int) -> tuple[int, int]:
    """Input and output channels where one group has another width."""
    removed = profile.group(group).channels - width
    into = layer.in_channels - removed * sum(feed.repeat for feed in layer.inputs if feed.group == group)
    return into, layer.out_channels - removed * (layer.group == group)
