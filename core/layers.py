"""What a model is made of, as plain records: layers, the channel groups that tie them, and their totals.

    Profile ── layers: Layer… ── inputs: Feed… ──► Group
                     └────────── group ──────────► Group

A group is a set of layers whose output channels can only be removed together (a residual sum ties all its branches).
Every layer's width follows from its own group, and its input width from the groups that feed it, so parameters and MACs
of any pruned model are exact sums over these records, without a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import floor
from typing import Any

from core.liveness import Operator


@dataclass(frozen=True)
class Feed:
    """Input channels of a layer that come from one group: `repeat` of them for each of the group's channels."""

    group: str
    repeat: int = 1  # more than 1 where a feature map is flattened: height × width


@dataclass(frozen=True)
class Layer:
    """One convolution, linear or normalization layer, in the order of execution."""

    name: str  # path in the model; the node of the exported file has the same name
    kind: str  # conv, depthwise, conv_transpose, linear, shortcut (it copies, until it is cut), norm, other
    params: int  # as an export holds them: a norm that it folds away leaves a bias, or nothing
    macs: int  # one multiply-add is one MAC; 0 for norm, which export folds away
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    bias: bool
    output_shape: tuple[int, ...]  # without the batch axis
    activation_bytes: int  # of its output, float32, batch 1
    group: str  # "" when its output channels belong to no group
    inputs: tuple[Feed, ...]
    latency_ms: float | None = None  # its node in ONNX Runtime, batch 1, one thread, median
    input_shape: tuple[int, ...] = ()  # without the batch axis


@dataclass(frozen=True)
class Group:
    """Layers whose output channels are removed together."""

    name: str  # its first layer's name
    channels: int
    layers: tuple[str, ...]  # the layers that produce these channels, in order
    blocked: str = ""  # why no channel can be removed, as a sentence; "" when they can
    branch: tuple[str, ...] = ()  # the layers that disappear once it is empty; none where one channel has to stay
    untraced: str = ""  # why no branch was even looked for, as a sentence


@dataclass(frozen=True)
class Profile:
    """Layers, groups and totals. Totals equal the sums of the rows."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    params: int
    macs: int
    activation_bytes: int  # sum over layers
    peak_bytes: int  # most activation memory alive at once, float32, batch 1
    file_bytes: int  # the original file
    latency_ms: float | None = None  # the whole file, batch 1, one thread, median
    operators: tuple[Operator, ...] = field(default=(), hash=False)  # of the exported file; none in an old profile

    @cached_property
    def tunable(self) -> tuple[Layer, ...]:
        """The layers a technique may touch, in order."""
        return tuple(layer for layer in self.layers if layer.kind not in ("shortcut", "norm", "other"))

    @cached_property
    def weighing(self) -> tuple[Layer, ...]:
        """The tunable layers, and the shortcuts that weigh something once channels around them are removed."""
        return tuple(layer for layer in self.layers if layer.kind not in ("norm", "other"))

    def group(self, name: str) -> Group:
        return self._named[name]

    @cached_property
    def _named(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def ends(self) -> dict[str, tuple[str, ...]]:
        """Layer → the groups that take it along once they are empty."""
        found: dict[str, tuple[str, ...]] = {}
        for group in self.groups:
            found |= {name: (*found.get(name, ()), group.name) for name in group.branch}
        return found

    def layer(self, name: str) -> Layer:
        return next(x for x in self.layers if x.name == name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Profile:
        layers = tuple(
            Layer(
                **{
                    **row,
                    "kernel": tuple(row["kernel"]),
                    "output_shape": tuple(row["output_shape"]),
                    "input_shape": tuple(row["input_shape"]),
                    "inputs": tuple(Feed(**feed) for feed in row["inputs"]),
                }
            )
            for row in values["layers"]
        )
        lists = ("layers", "branch")  # a profile from before branches were known is read without them
        groups = tuple(Group(**{**row, **{k: tuple(row.get(k, ())) for k in lists}}) for row in values["groups"])
        operators = tuple(
            Operator(kind, tuple(reads), size, layer, tuple((g, each) for g, each in channels), *more)
            for kind, reads, size, layer, channels, *more in values.get("operators", ())  # an old profile has none
        )
        return cls(**{**values, "layers": layers, "groups": groups, "operators": operators})


def kept_channels(channels: int, ratio: float, multiple: int) -> int:
    """Channels left after removing `ratio` of them, rounded to the nearest multiple; at least one block stays.

    >>> kept_channels(64, 0.3, 8), kept_channels(16, 0.9, 8), kept_channels(10, 0.5, 16)
    (48, 8, 10)
    """
    if ratio <= 0 or channels <= multiple:
        return channels
    wanted = channels * (1 - ratio)
    return int(min(channels, max(multiple, floor(wanted / multiple + 0.5) * multiple)))


def width_after(group: Group, channels: int, ratio: float, multiple: int) -> int:
    """Channels that a group of now `channels` keeps: none only where all are asked for and its branch can go."""
    return 0 if ratio >= 1 and group.branch else kept_channels(channels, ratio, multiple)


def dial_for(layers: Mapping[str, Any], name: str, default: Any) -> Any:
    """A layer's own value of a step's dial. A factor of a split layer (`conv.0`) follows the layer it came from."""
    while layers and name:
        if name in layers:
            return layers[name]
        name = name.rpartition(".")[0]
    return default


def explain(profile: Profile, name: str, multiple: int = 8) -> str:
    """Why a layer's channels can or cannot be removed, with which others, and to which widths, in a few sentences.

    Raises StopIteration when the profile has no such layer.
    """
    layer = profile.layer(name)
    if not layer.group:
        joined = ", ".join(feed.group for feed in layer.inputs)
        return f"{name} passes on the joined channels of {joined}: prune those and it follows."
    group = profile.group(layer.group)
    others = [other for other in group.layers if other != name]
    shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    together = f" Its channels are removed together with those of {shown}, since their outputs meet." if others else ""
    if group.blocked:
        return f"{name} keeps its {layer.out_channels} channels. {group.blocked}{together}"
    gone = " At 100 % the whole residual branch disappears, and with it its time." if group.branch else ""
    gone = gone or (group.untraced and f" {group.untraced}")
    if group.channels <= multiple:
        return (
            f"{name} has {group.channels} channels, no more than one block of {multiple}, so all stay.{together}{gone}"
        )
    return f"{name} can go from {group.channels} channels to {_widths(group.channels, multiple)}{together}{gone}"


def _widths(channels: int, multiple: int) -> str:
    """The widths there are, and what becomes of a share that falls between two of them."""
    kept = kept_channels(channels, 0.3, multiple)
    if multiple == 1:
        return f"any number down to 1; removing 30 % leaves {kept}."
    found = [str(w) for w in range((channels - 1) // multiple * multiple, 0, -multiple)]
    if len(found) > 4:
        found = [*found[:3], "…", found[-1]]
    listed = " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    return (
        f"{listed}: widths are multiples of {multiple}, since runtimes compute in blocks. "
        f"Removing 30 % would leave {0.7 * channels:.4g}, which becomes {kept}."
    )
