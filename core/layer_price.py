"""What one layer costs at some widths, rank and bits: MACs, bytes of weights, milliseconds of its operators."""

from __future__ import annotations

from core.latency_table import LatencyTable
from core.layers import Layer
from core.predict import shape_of
from core.ranks import Shape, factors, refusal

Costs = tuple[float, ...]


def price(layer: Layer, into: int, out: int, rank: float, bits: float, latency: LatencyTable | None) -> Costs:
    """(MACs, bytes, operator ms): weights at their bits, biases as 32-bit numbers; no time without a table."""
    if layer.kind == "shortcut":
        return _shortcut(layer, into, out, latency)
    if rank >= 1 and latency is None and layer.kind != "linear":  # asked for thousands of times: no records in between
        groups = out if layer.kind == "depthwise" else layer.groups
        weights = into // groups * out * layer.kernel[0] * layer.kernel[1]
        macs = weights * layer.output_shape[-2] * layer.output_shape[-1]
        return float(macs), weights * bits / 8 + 4 * (layer.bias + (bits < 32)) * out, 0.0
    whole = shape_of(layer, into, out)
    split = rank < 1 and not refusal(whole, "spatial_svd", rank)
    parts: tuple[Shape, ...] = factors(whole, "spatial_svd", rank) if split else (whole,)
    biases = sum(p.bias * p.out_channels for p in parts)
    scales = out if bits < 32 else 0
    size = (sum(p.params for p in parts) - biases) * bits / 8 + 4 * (biases + scales)
    time = sum(latency.operator(p, bits) for p in parts) if latency else 0.0
    return float(sum(p.macs for p in parts)), size, time


def _shortcut(layer: Layer, into: int, out: int, latency: LatencyTable | None) -> Costs:
    """Free as a copy; a 1×1 convolution once it is cut."""
    if (into, out) == (layer.in_channels, layer.out_channels):
        return 0.0, 0.0, 0.0
    shape = cut(layer, into, out)
    return float(shape.macs), 4.0 * shape.params, latency.operator(shape) if latency else 0.0


def cut(layer: Layer, into: int, out: int) -> Shape:
    """The convolution that a shortcut becomes."""
    return Shape("conv", into, out, (1, 1), 1, layer.input_shape[-2:], layer.output_shape[-2:])  # type: ignore[arg-type]
