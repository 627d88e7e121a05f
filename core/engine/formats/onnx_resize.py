"""Operators that change an image's size: Resize, Upsample, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from core.engine.formats.onnx_builder import Array, Attributes, Builder, Value, operator
from core.errors import ModelError

MODES = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}


@operator("Resize")
def resize(b: Builder, a: Attributes, x: fx.Node, *values: Value) -> fx.Node:
    """Inputs: scales (opset 10), or region of interest, scales, sizes (opset 11 on)."""
    scales, sizes = (values[0], None) if b.opset < 11 else (*values[1:], None, None)[:2]
    if a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise _refused(b, "keeps the aspect ratio", "'stretch'")
    rank = len(b.shape(x))
    axes = [axis % rank for axis in a.get("axes", range(rank))]
    factors = dict.fromkeys(range(rank), 1.0)
    if scales is not None and np.size(b.constant(scales, "scale")):
        factors.update(zip(axes, b.constant(scales, "scale").tolist(), strict=True))
    else:
        wanted = zip(axes, b.constant(sizes, "size").tolist(), strict=True)
        factors.update({axis: size / b.shape(x)[axis] for axis, size in wanted if axis})  # any number of images
    default = "half_pixel" if b.opset >= 11 else "asymmetric"
    return _resized(b, a, x, factors, a.get("coordinate_transformation_mode", default))


@operator("Upsample")
def upsample(b: Builder, a: Attributes, x: fx.Node, scales: Value = None) -> fx.Node:
    given = a["scales"] if scales is None else b.constant(scales, "scale").tolist()
    return _resized(b, a, x, dict(enumerate(given)), "asymmetric")


def _resized(b: Builder, a: Attributes, x: fx.Node, factors: dict[int, float], where: str) -> fx.Node:
    shape, mode = b.shape(x), a.get("mode", "nearest")
    space = range(2, len(shape))
    if any(abs(factors[axis] - 1) > 1e-6 for axis in (0, 1)):
        raise _refused(b, "changes the batch or the channels", "the axes of space")
    sizes = [math.floor(shape[axis] * factors[axis] + 1e-6) for axis in space]
    if mode == "nearest":
        how = a.get("nearest_mode", "round_prefer_floor" if b.opset >= 11 else "floor")
        return _nearest(b, x, factors, sizes, where, how)
    if mode not in MODES or len(sizes) not in MODES[mode] or a.get("exclude_outside", 0):
        raise _refused(b, f"has mode {mode!r} over {len(sizes)} axes", "nearest, linear and cubic")
    if a.get("antialias", 0):
        raise _refused(b, "smooths before it samples (antialias)", "plain sampling")
    if (
        where not in ("half_pixel", "pytorch_half_pixel", "align_corners")
        or (where[0] == "p" and 1 in sizes)
        or (mode == "cubic" and abs(a.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6)
    ):
        raise _refused(b, f"places {mode} samples by {where!r}", "half_pixel and align_corners")
    whole = all(abs(size - shape[axis] * factors[axis]) < 1e-4 for axis, size in zip(space, sizes, strict=True))
    if not whole and where == "align_corners":
        raise _refused(b, "scales to a fraction of a pixel", "sizes that divide evenly")
    size = {"size": tuple(sizes)} if whole else {"scale_factor": tuple(factors[axis] for axis in space)}
    return b.call(
        F.interpolate,
        x,
        mode=MODES[mode][len(sizes)],
        align_corners=where == "align_corners",
        **size,
    )


def _nearest(b: Builder, x: fx.Node, factors: dict[int, float], sizes: list[int], where: str, how: str) -> fx.Node:
    """torch's own operator where it picks the same pixels, else the picked rows and columns."""
    shape = b.shape(x)
    picks = [_picked(b, shape[i + 2], size, factors[i + 2], where, how) for i, size in enumerate(sizes)]
    own = [np.arange(size) * shape[i + 2] // size for i, size in enumerate(sizes)]
    if all(np.array_equal(pick, plain) for pick, plain in zip(picks, own, strict=True)):
        return b.call(F.interpolate, x, size=tuple(sizes), mode="nearest")
    for i, pick in enumerate(picks):
        x = b.call(torch.index_select, x, i + 2, b.tensor(pick))
    return x


def _picked(b: Builder, old: int, new: int, scale: float, where: str, how: str) -> Array:
    """The source index of each of `new` pixels, as ONNX's Resize defines it."""
    i = np.arange(new, dtype=np.float64)
    places = {
        "asymmetric": i / scale,
        "half_pixel": (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (i + 0.5) / scale - 0.5 if new > 1 else i * 0,
        "half_pixel_symmetric": old / 2 * (1 - new / (scale * old)) + (i + 0.5) / scale - 0.5,
        "align_corners": i * (old - 1) / max(1, new - 1),
    }
    rounding: dict[str, Callable[[Array], Array]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    if where not in places or how not in rounding:
        raise _refused(b, f"places nearest samples by {where!r}, {how!r}", ", ".join(places))
    return np.asarray(np.clip(rounding[how](places[where]), 0, old - 1), np.int64)


@operator("DepthToSpace")
def depth_to_space(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    block = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return b.layer(nn.PixelShuffle(block), x)
    _, channels, height, width = b.shape(x)
    split = b.call(torch.reshape, x, (b.batch(), block, block, channels // block**2, height, width))
    moved = b.method("permute", split, 0, 3, 4, 1, 5, 2)
    return b.call(torch.reshape, moved, (b.batch(), channels // block**2, height * block, width * block))


@operator("SpaceToDepth")
def space_to_depth(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    block = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return b.layer(nn.PixelUnshuffle(block), x)
    _, channels, height, width = b.shape(x)
    rows, columns = height // block, width // block
    split = b.call(torch.reshape, x, (b.batch(), channels, rows, block, columns, block))
    moved = b.method("permute", split, 0, 3, 5, 1, 2, 4)
    return b.call(torch.reshape, moved, (b.batch(), channels * block**2, rows, columns))


def _refused(b: Builder, what: str, accepted: str) -> ModelError:
    return ModelError(f"{b.node.op_type} (node {b.node.name!r}) {what}; accepted: {accepted}.")
