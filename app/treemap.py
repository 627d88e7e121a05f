"""Profile → treemap: which parts of the model hold the parameters or do the work. First the nodes, then the drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.charts import Chart
from app.tables import count, milliseconds, percent, size
from core.layers import Layer, Profile


@dataclass(frozen=True)
class Node:
    """A layer, or a module that holds layers. `value` of a module is the sum of what it holds."""

    path: str
    label: str  # the last part of the path
    parent: str  # "" for the model itself
    value: float


@dataclass(frozen=True)
class Quantity:
    """What the area of a rectangle means."""

    title: str
    field: str  # of Layer
    words: Any  # value → text with its unit


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("Parameters", "params", lambda v: count(v, "parameters")),
    Quantity("MACs", "macs", lambda v: count(v, "MACs")),
    Quantity("Activation memory", "activation_bytes", size),
    Quantity("Latency", "latency_ms", milliseconds),
)


def quantities(profile: Profile) -> tuple[Quantity, ...]:
    """Those that were counted or measured for this model."""
    return tuple(q for q in QUANTITIES if any(getattr(layer, q.field) for layer in profile.layers))


def nodes(layers: tuple[Layer, ...], quantity: Quantity) -> list[Node]:
    """The tree of modules, the root first. Layers that have nothing of the quantity are left out."""
    values = {layer.name: float(getattr(layer, quantity.field) or 0) for layer in layers}
    values = {name: value for name, value in values.items() if value > 0}
    sums: dict[str, float] = {"": sum(values.values())}
    for name, value in values.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            module = ".".join(parts[:depth])
            sums[module] = sums.get(module, 0.0) + value
    for name, value in values.items():  # a layer may also be the prefix of another's name
        sums[name] = sums.get(name, 0.0) + value
    ordered = sorted(sums.items(), key=lambda item: (item[0].count("."), item[0] != "", -item[1]))
    return [Node(path or "model", path.rsplit(".", 1)[-1] or "model", _parent(path), value) for path, value in ordered]


def _parent(path: str) -> str:
    return "" if not path else (path.rsplit(".", 1)[0] if "." in path else "model")


def treemap(profile: Profile, quantity: Quantity) -> Chart:
    """Area = share of the quantity; hover shows it with its unit."""
    tree = nodes(profile.layers, quantity)
    total = tree[0].value
    trace = {
        "type": "treemap",
        "ids": [node.path for node in tree],
        "labels": [node.label for node in tree],
        "parents": [node.parent for node in tree],
        "values": [node.value for node in tree],
        "text": [f"{percent(node.value / total, 1)}" for node in tree],
        "customdata": [[node.path, quantity.words(node.value)] for node in tree],
        "branchvalues": "total",
        "textinfo": "label+text",
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}, %{text} of the model<extra></extra>",
        "tiling": {"pad": 2},
        # one colour per block, so that the automatic choice of dark or light text fits its heading too
        "marker": {"depthfade": False, "line": {"width": 1.5, "color": "rgba(255,255,255,0.6)"}},
        "root": {"color": "rgba(128,128,128,0.12)"},
        "pathbar": {"visible": True, "thickness": 22},
    }
    layout = {"height": 430, "margin": {"l": 0, "r": 0, "t": 26, "b": 0}, "uirevision": quantity.field}
    return Chart({"data": [trace], "layout": layout}, _alt(profile, quantity, total))


def _alt(profile: Profile, quantity: Quantity, total: float) -> str:
    top = sorted(profile.layers, key=lambda layer: -(getattr(layer, quantity.field) or 0))[:3]
    parts = (f"{layer.name} {percent((getattr(layer, quantity.field) or 0) / total, 1)}" for layer in top)
    return f"{quantity.title} by layer, {quantity.words(total)} in all; the largest are {', '.join(parts)}."
