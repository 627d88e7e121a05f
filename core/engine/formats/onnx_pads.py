"""Padding, and the shortcut without parameters that is a slice and a pad of channels."""

from __future__ import annotations

from operator import getitem

import torch.nn.functional as F
from torch import fx

from core.engine.formats.onnx_builder import Attributes, Builder, Value, operator
from core.engine.shortcut import make_shortcut
from core.errors import ModelError

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Pad")
def pad(b: Builder, a: Attributes, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> fx.Node:
    sides = a["pads"] if pads is None else b.constant(pads, "padding").reshape(-1).tolist()
    x = b.tensor(x)
    rank, fill = len(b.shape(x)), a.get("value", 0.0)
    if value is not None:
        fill = b.constant(value, "value").item()
    where = list(range(rank)) if axes is None else [int(i) % rank for i in b.constant(axes, "axes")]
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(where):
        pairs[axis] = (sides[i], sides[i + len(where)])
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    if not pairs:
        return x
    if rank - len(pairs) < 1:
        raise ModelError(f"Pad (node {b.node.name!r}) pads the batch axis; accepted are the other axes.")
    mode = PAD_MODES[a.get("mode", "constant")]
    empty = mode == "constant" and fill == 0 and pairs[1:] == [(0, 0), (0, 0)] and min(pairs[0]) >= 0
    if empty and rank == 4:
        source, stride = _every_nth(x)
        return b.layer(make_shortcut(b.shape(source)[1], *pairs[0], stride), source)
    flat = [side for pair in reversed(pairs) for side in pair]
    return b.call(F.pad, x, flat, mode, fill if mode == "constant" else None)


def _every_nth(x: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """The image that `x` takes every n-th row and column of, and those strides; `x` itself when it is no such slice."""
    stride = [1, 1]
    while x.target is getitem and isinstance(x.args[1], tuple) and len(x.args[1]) == 4:
        cuts = [c if isinstance(c, slice) else slice(0) for c in x.args[1]]
        if any((c.start or 0, c.stop) != (0, None) for c in cuts) or cuts[:2] != [slice(None)] * 2:
            break
        stride = [s * (c.step or 1) for s, c in zip(stride, cuts[2:], strict=True)]
        x = x.args[0]  # type: ignore[assignment]
    return x, (stride[0], stride[1])
