"""Which settings meet in one layer, so that what one of them costs depends on the others."""

from __future__ import annotations

from collections.abc import Collection

from core.layers import Layer, Profile
from core.sensitivity_table import Key


def touched(profile: Profile, key: Key) -> list[Layer]:
    """The layers whose costs a setting changes: a group's own, those that read it or go with it; else itself."""
    name, technique = key
    if technique != "prune_channels":
        return [layer for layer in profile.weighing if layer.name == name]
    branch = profile.group(name).branch
    return [
        x
        for x in profile.weighing
        if x.group == name or x.name in branch or any(feed.group == name for feed in x.inputs)
    ]


def neighbours(profile: Profile, layers: Collection[Layer], key: Key) -> tuple[Key, ...]:
    """All other settings of the layers that `key` touches."""
    found: dict[Key, None] = {}
    for layer in layers:
        for group in (layer.group, *[feed.group for feed in layer.inputs], *profile.ends.get(layer.name, ())):
            found[group, "prune_channels"] = None
        found |= {(layer.name, "factorize"): None, (layer.name, "quantize"): None}
    found.pop(key, None)
    return tuple(found)


def hubs(profile: Profile, names: Collection[str]) -> list[str]:
    """Of the open groups `names`, few that cover all meetings of two in one layer: held, the rest is apart."""
    pairs = {
        frozenset((feed.group, layer.group))
        for layer in profile.tunable
        for feed in layer.inputs
        if feed.group != layer.group and feed.group in names and layer.group in names
    }
    found = []
    while pairs:
        hub = max(sorted({n for pair in pairs for n in pair}), key=lambda n: sum(n in pair for pair in pairs))
        found.append(hub)
        pairs = {pair for pair in pairs if hub not in pair}
    return found
