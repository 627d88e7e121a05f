"""A network as the steps of a recipe have left it so far, without a tensor: widths of groups, layers, zeros, bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from core.layers import Group, Layer, Profile


@dataclass(frozen=True)
class LayerCost:
    """One layer of the original; where it was split, the sum of its factors."""

    name: str
    params: int
    macs: int
    weight_bytes: int
    in_channels: int
    out_channels: int
    note: str = ""  # why a step left the layer as it was, as a sentence
    nonzero: int = 0  # parameters that are not pruned to zero


class _Size(NamedTuple):
    """Of one layer or factor at the present widths."""

    into: int  # input channels
    out: int
    weights: int
    params: int
    macs: int


class Network:
    """The network as the steps so far have left it. `parts` maps an original layer's name to what stands there now."""

    def __init__(self, profile: Profile) -> None:
        self.parts: dict[str, list[Layer]] = {layer.name: [layer] for layer in profile.layers}
        self.groups: dict[str, Group] = {group.name: group for group in profile.groups}
        self.width: dict[str, int] = {group.name: group.channels for group in profile.groups}
        self.zeros: dict[str, tuple[int, int]] = {}  # layer or factor → (zeros, of so many weights at that time)
        self.bits: dict[str, int] = {}  # layer or factor → 3 to 8 or 16 where not 32
        self.gone: set[str] = set()  # layers and factors that disappeared
        self.integer: set[str] = set()  # layers and factors whose activations are integers too
        self.peak_known = True  # False where only a run can tell what memory it takes
        self.notes: dict[str, str] = {}
        self.exact = True

    @property
    def layers(self) -> list[Layer]:
        return [part for parts in self.parts.values() for part in parts]

    def channels(self, layer: Layer) -> tuple[int, int]:
        """Input and output channels now."""
        into = layer.in_channels
        if layer.inputs:
            into = 0
            for feed in layer.inputs:
                into += self.width[feed.group] * feed.repeat
        if layer.group in self.width:
            return into, self.width[layer.group]
        return into, into if layer.kind in ("norm", "depthwise") and layer.inputs else layer.out_channels

    def size(self, layer: Layer) -> _Size:
        """What the layer is now. Weights are without biases, and 0 where it is no convolution and not linear."""
        if layer.name in self.gone:
            return _Size(0, 0, 0, 0, 0)
        into, out = self.channels(layer)
        if layer.kind in ("norm", "other"):
            follows = layer.out_channels and (layer.group in self.width or layer.kind == "norm")
            params = layer.params * out // layer.out_channels if follows else layer.params
            return _Size(into, out, 0, params, layer.macs)
        if layer.kind == "shortcut":  # a copy costs nothing; once cut it is a 1×1 convolution
            weights = 0 if (into, out) == (layer.in_channels, layer.out_channels) else into * out
            return _Size(into, out, weights, weights, weights * layer.output_shape[1] * layer.output_shape[2])
        groups = out if layer.kind == "depthwise" else layer.groups
        weights = into // groups * out * layer.kernel[0] * layer.kernel[1]
        macs = layer.macs * weights // (layer.params - layer.bias * layer.out_channels)
        return _Size(into, out, weights, weights + layer.bias * out, macs)

    def zeros_in(self, layer: Layer, weights: int) -> int:
        """Where channels went after the zeros came, only their share is known."""
        zeros, of = self.zeros.get(layer.name, (0, weights))
        self.exact &= weights == of
        return zeros if weights == of else round(zeros * weights / of)

    def bytes_of(self, layer: Layer, size: _Size) -> int:
        """Integer weights come with a float scale for each channel; biases and norms take four bytes all the same."""
        bits = self.bits.get(layer.name, 32)
        if bits <= 8 and size.weights:
            packed = -(-size.weights * bits // 8) if bits in (4, 8) else bits * -(-size.weights // 8)  # types or planes
            return packed + 4 * (size.params - size.weights) + 4 * size.out
        return 2 * size.params if bits == 16 else 4 * size.params

    def cost(self, name: str) -> LayerCost:
        params = macs = stored = zeros = 0
        sizes = [self.size(part) for part in self.parts[name]]
        for part, size in zip(self.parts[name], sizes, strict=True):
            params += size.params
            macs += size.macs
            stored += self.bytes_of(part, size)
            zeros += self.zeros_in(part, size.weights)
        into, out, note = sizes[0].into, sizes[-1].out, self.notes.get(name, "")
        return LayerCost(name, params, macs, stored, into, out, note, params - zeros)
