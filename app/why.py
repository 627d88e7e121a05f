"""Why a layer's channels can or cannot be removed, as a record that `components/why.js` draws: what it reads, which
layers move with it, what stands in the way, and what reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.layers import Group, Layer, Profile, explain

SHOWN = 10  # names in one box; the rest is counted
# How the engine's sentences name what keeps channels in place.
_OBSTACLES = (
    (re.compile(r"pass through (\w+)"), r"\1"),
    (re.compile(r"model's input in (\w+),"), r"\1"),
    (re.compile(r"constant ones \((\w+)\)"), r"\1"),
    (re.compile(r"is a grouped convolution"), "Grouped convolution"),
    (re.compile(r"is run \d+ times"), "Shared layer"),
    (re.compile(r"meet a parameter"), "Parameter"),
    (re.compile(r"are the model's answer"), "Answer"),
)


@dataclass(frozen=True)
class Box:
    """A titled list of names."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Coupling:
    """From left to right: what it reads, what moves together, the obstacle, what reads the result."""

    layer: str
    reads: Box
    together: Box
    obstacle: str  # what keeps the channels, in a word or two; "" when they can be removed
    readers: Box
    said: str  # the same in sentences


def coupling(profile: Profile, layer: Layer, multiple: int) -> Coupling:
    """The channel group of a layer, and its neighbours."""
    group = next((g for g in profile.groups if g.name == layer.group), None)
    together, count = (group.layers, group.channels) if group else ((layer.name,), layer.out_channels)
    readers = [x.name for x in profile.tunable if any(f.group == layer.group for f in x.inputs)] if group else []
    title = "Moves together" if len(together) > 1 else "Moves by itself" if group else "Passes on"
    return Coupling(
        layer.name,
        _box("Reads", [_source(profile, feed.group) for feed in layer.inputs]),
        _box(f"{title}: {count} channels", list(together), layer.name),
        obstacle(group) if group else "",
        _box("Read by", readers),
        explain(profile, layer.name, multiple),
    )


def obstacle(group: Group) -> str:
    """The operator that keeps the group's channels; where its sentence names none, the sentence itself says it."""
    if not group.blocked:
        return ""
    for pattern, name in _OBSTACLES:
        found = pattern.search(group.blocked)
        if found:
            return found.expand(name)
    return "see below"


def _source(profile: Profile, name: str) -> str:
    """A group that feeds a layer, by the layer that leads it."""
    if name == "input":
        return "the image"
    layers = profile.group(name).layers
    if not layers:
        return "channels that stay"
    return f"{name} and {len(layers) - 1} more" if len(layers) > 1 else name


def _box(title: str, names: list[str], mine: str = "") -> Box:
    """At most `SHOWN` names, `mine` among them."""
    if len(names) <= SHOWN:
        return Box(title, tuple(names))
    kept = names[: SHOWN - 1]
    if mine in names and mine not in kept:
        kept[-1] = mine
    return Box(title, (*kept, f"and {len(names) - len(kept)} more"))
