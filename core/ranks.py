"""Low-rank factors of a layer: their ranks, shapes and costs, and when splitting does not pay. No tensor here, so the
technique `factorize` and the instant prediction use the very same functions.

Spatial SVD: Speeding up Convolutional Neural Networks with Low Rank Expansions, Jaderberg et al. 2014 (scheme 2).
Tucker-2: Compression of Deep CNNs for Fast and Low Power Mobile Applications, Kim et al. 2016.
CP: Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition, Lebedev et al. 2015; for teaching.
`rank` is the share of the full rank that is KEPT, in (0, 1]; 1 leaves a layer as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

ANSWER = (
    "Kept: its outputs are the model's answer, which few directions cannot hold; give it a rank of its own to split it."
)
Rank = float | tuple[float, float]  # a share, or those of Tucker-2's inputs and outputs


@dataclass(frozen=True)
class Shape:
    """What decides a layer's factors. A linear layer has kernel (1, 1) and as many pixels as it is applied to."""

    kind: str  # as in Layer.kind; only conv and linear are ever split
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)  # height, width of the input
    out_size: tuple[int, int] = (1, 1)
    bias: bool = False

    @property
    def params(self) -> int:
        weights = self.in_channels // self.groups * self.out_channels * self.kernel[0] * self.kernel[1]
        return weights + self.bias * self.out_channels

    @property
    def macs(self) -> int:
        return (self.params - self.bias * self.out_channels) * self.out_size[0] * self.out_size[1]


def _keep(rank: float, full: int) -> int:
    return min(full, max(1, round(rank * full)))


def linear_rank(rank: float, c_in: int, c_out: int) -> int:
    """Rank kept of a (c_out, c_in) matrix."""
    return _keep(rank, min(c_in, c_out))


def spatial_rank(rank: float, kernel: tuple[int, int], c_in: int, c_out: int) -> int:
    """Channels between a (kh, 1) and a (1, kw) convolution: the weight as a (c_in · kh, c_out · kw) matrix."""
    return _keep(rank, min(c_in * kernel[0], c_out * kernel[1]))


def tucker_ranks(rank: Rank, kernel: tuple[int, int], c_in: int, c_out: int) -> tuple[int, int]:
    """Channels into and out of the core convolution: (r_in, r_out)."""
    area = kernel[0] * kernel[1]
    into, out = rank if isinstance(rank, tuple) else (rank, rank)
    return _keep(into, min(c_in, c_out * area)), _keep(out, min(c_out, c_in * area))


def cp_rank(rank: float, kernel: tuple[int, int], c_in: int, c_out: int) -> int:
    """Terms of the sum; so many suffice for any weights where all are kept."""
    return _keep(rank, min(c_in, c_out) * kernel[0] * kernel[1])


def factors(shape: Shape, method: str, rank: Rank) -> tuple[Shape, ...]:
    """The thinner layers, in order of execution, that replace a conv or linear layer; the last one carries the bias.

    spatial_svd: (kh, 1) with the vertical stride, then (1, kw) with the horizontal one.
    tucker2: 1×1 before the stride, the (kh, kw) core with it, 1×1.
    cp: 1×1 before the stride, (kh, 1) and (1, kw) on each channel alone with it, 1×1.
    """
    c_in, c_out, (kh, kw) = shape.in_channels, shape.out_channels, shape.kernel
    before, after = shape.in_size, shape.out_size
    middle = (after[0], before[1])
    if isinstance(rank, float | int):
        if shape.kind == "linear":
            r = linear_rank(rank, c_in, c_out)
            return Shape("linear", c_in, r, out_size=after), Shape("linear", r, c_out, out_size=after, bias=shape.bias)
        if method == "spatial_svd":
            r = spatial_rank(rank, shape.kernel, c_in, c_out)
            return (
                Shape("conv", c_in, r, (kh, 1), in_size=before, out_size=middle),
                Shape("conv", r, c_out, (1, kw), in_size=middle, out_size=after, bias=shape.bias),
            )
        if method == "cp":
            r = cp_rank(rank, shape.kernel, c_in, c_out)
            return (
                Shape("conv", c_in, r, in_size=before, out_size=before),
                Shape("depthwise", r, r, (kh, 1), r, before, middle),
                Shape("depthwise", r, r, (1, kw), r, middle, after),
                Shape("conv", r, c_out, in_size=after, out_size=after, bias=shape.bias),
            )
    r_in, r_out = tucker_ranks(rank, shape.kernel, c_in, c_out)
    return (
        Shape("conv", c_in, r_in, in_size=before, out_size=before),
        Shape("conv", r_in, r_out, shape.kernel, in_size=before, out_size=after),
        Shape("conv", r_out, c_out, in_size=after, out_size=after, bias=shape.bias),
    )


def refusal(shape: Shape, method: str, rank: Rank) -> str:
    """Why the layer is not split, as a sentence; "" when it is: the factors need fewer parameters and fewer MACs."""
    if shape.kind not in ("conv", "linear"):
        return f"Kept: a {shape.kind} layer is never split."
    if shape.groups > 1:
        return f"Kept: a convolution of {shape.groups} groups is already thin."
    parts = factors(shape, method, rank)
    params, macs = sum(p.params for p in parts), sum(p.macs for p in parts)
    if params < shape.params and macs < shape.macs:
        return ""
    width = " and ".join(str(p.out_channels) for p in parts[:-1])
    return (
        f"Kept: {len(parts)} factors of rank {width} would need {params:,} parameters and {macs:,} MACs, "
        f"the layer has {shape.params:,} and {shape.macs:,}."
    )
