"""Operators that move values without changing them: reshape, transpose, slice, concatenate.

A reshape is read for what it means, so that channels can be removed later and any batch size runs: merging axes is a
flatten, and elsewhere the axis that holds channels is left to be inferred. The sizes of an image's axes stay fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import fx

from core.engine.formats.onnx_builder import ALL, BATCH, Array, Attributes, Builder, Value, batch_axis, operator
from core.errors import ModelError


@operator("Shape")
def shape_of(b: Builder, a: Attributes, x: Value) -> Array:
    return np.asarray(b.shape(x)[a.get("start", 0) : a.get("end")], np.int64)


@operator("Size")
def size_of(b: Builder, a: Attributes, x: Value) -> Array:
    return np.asarray(math.prod(b.shape(x)), np.int64)


@operator("Flatten", folds=1)
def flatten(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    shape = b.shape(x)
    axis = a.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    if axis == 1:
        return b.call(torch.flatten, x, 1)
    return reshaped(b, x, [math.prod(shape[:axis]), math.prod(shape[axis:])], None)


@operator("Reshape", folds=1)
def reshape(b: Builder, a: Attributes, x: Value, target: Value) -> fx.Node:
    x, wanted = b.tensor(x), b.constant(target, "shape").tolist()
    shape = b.shape(x)
    if not a.get("allowzero", 0):
        wanted = [shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return reshaped(b, x, wanted, wanted.index(-1) if -1 in wanted else None)


def reshaped(b: Builder, x: fx.Node, target: Sequence[int], open_axis: int | None) -> fx.Node:
    """`x` in another shape of as many elements; -1 in `target` (at `open_axis`) is inferred."""
    shape = b.shape(x)
    axis = batch_axis(shape)
    old, new = _as_filed(b, shape), _as_filed(b, target)
    if open_axis is not None:
        new[open_axis] = math.prod(old) // max(1, -math.prod(new))
    if math.prod(new) != math.prod(old):
        raise ModelError(f"Reshape (node {b.node.name!r}) cannot turn {old} into {new}: the sizes differ.")
    if axis is None:
        return b.call(torch.reshape, x, tuple(new))
    home = _where_batch_goes(b, old, new, axis)
    b.frozen = b.frozen or (home != open_axis and target[home] % BATCH != 0)
    if old == new and home == axis:
        return x
    if (merged := _merged_axes(old, new, axis)) is not None:
        return b.call(torch.flatten, x, *merged)
    alone = new[home] == b.filed_batch
    channels = _covering(old, new, 1) if axis == 0 and len(old) > 2 else None
    free = next((i for i in (open_axis, channels) if alone and i not in (None, home)), home)
    sizes: list[Any] = [-1 if i == free else size for i, size in enumerate(new)]
    if free != home:
        sizes[home] = b.batch()
    return b.call(torch.reshape, x, tuple(sizes))


def _as_filed(b: Builder, shape: Sequence[int]) -> list[int]:
    """Sizes as the file's author saw them: with the file's own batch size."""
    return [s // BATCH * b.filed_batch if s and s % BATCH == 0 else s for s in shape]


def _where_batch_goes(b: Builder, old: Sequence[int], new: Sequence[int], axis: int) -> int:
    """The axis of `new` at which the batch, axis `axis` of `old`, begins in memory."""
    before = math.prod(old[:axis])
    fits = [i for i in range(len(new)) if math.prod(new[:i]) == before and new[i] % b.filed_batch == 0]
    if not fits:
        raise ModelError(
            f"Reshape (node {b.node.name!r}) mixes the images of a batch; accepted is one answer per image."
        )
    return fits[0]


def _merged_axes(old: list[int], new: list[int], axis: int) -> tuple[int, int] | None:
    """(first, last) when `new` is `old` with those axes behind the batch flattened into one."""
    last = len(old) - len(new)
    for first in range(axis + 1, len(new)):
        merged = [*old[:first], math.prod(old[first : first + last + 1]), *old[first + last + 1 :]]
        if last > 0 and merged == new:
            return first, first + last
    return None


def _covering(old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """The largest axis of `new` that shares elements with `axis` of `old`."""
    low = math.prod(old[:axis])
    high = low * old[axis]
    starts = [math.prod(new[:i]) for i in range(len(new))]
    shared = [i for i, s in enumerate(starts) if new[i] > 1 and s < high and s * new[i] > low]
    return max(shared, key=lambda i: new[i], default=None)


@operator("Transpose", folds=1)
def transpose(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    order = list(a.get("perm", reversed(range(len(b.shape(x))))))
    if x.op == "call_method" and x.target == "permute":
        first = [int(axis) for axis in x.args[1:]]  # type: ignore[arg-type]
        if [first[axis] for axis in order] == list(range(len(order))):
            return x.args[0]  # type: ignore[return-value]
    return b.method("permute", x, *order)


@operator("Squeeze", folds=1)
def squeeze(b: Builder, a: Attributes, x: fx.Node, axes: Value = None) -> fx.Node:
    shape = b.shape(x)
    given = b.constant(axes, "axes").reshape(-1).tolist() if axes is not None else a.get("axes")
    over = [axis % len(shape) for axis in given] if given else [i for i, size in enumerate(shape) if size == 1]
    if batch_axis(shape) in over:
        raise ModelError(f"Squeeze (node {b.node.name!r}) removes the batch axis; accepted are the other axes.")
    return b.call(torch.squeeze, x, tuple(over))


@operator("Unsqueeze", folds=1)
def unsqueeze(b: Builder, a: Attributes, x: fx.Node, axes: Value = None) -> fx.Node:
    given = b.constant(axes, "axes").reshape(-1).tolist() if axes is not None else a["axes"]
    rank = len(b.shape(x)) + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = b.call(torch.unsqueeze, x, axis)
    return x


@operator("Concat", folds=ALL)
def concat(b: Builder, a: Attributes, *values: Value) -> fx.Node:
    parts = [b.tensor(value) for value in values]
    axis = a["axis"] % len(b.shape(parts[0]))
    batched = any(batch_axis(b.shape(part)) == 0 for part in parts)
    for i, part in enumerate(parts):
        shape = b.shape(part)
        if batched and axis and shape[0] == b.filed_batch == 1:  # a constant beside images
            parts[i] = b.method("expand", part, b.batch(), *shape[1:])
    return b.call(torch.cat, parts, axis)


@operator("Split", folds=1)
def split(b: Builder, a: Attributes, x: fx.Node, sizes: Value = None) -> tuple[fx.Node, ...]:
    axis, count = a.get("axis", 0) % len(b.shape(x)), len(b.node.output)
    given = b.constant(sizes, "split").tolist() if sizes is not None else a.get("split")
    whole = b.shape(x)[axis]
    each = math.ceil(whole / count)
    parts = given or [min(each, whole - i * each) for i in range(count)]
    even = parts == [each] * count  # a chunk stays right when channels are removed
    pieces = b.call(torch.chunk, x, count, axis) if even else b.call(torch.split, x, parts, axis)
    return tuple(b.call(getitem, pieces, i) for i in range(count))


@operator("Slice", folds=1)
def slice_of(
    b: Builder, a: Attributes, x: fx.Node, low: Value = None, high: Value = None, axes: Value = None, step: Value = None
) -> fx.Node:
    shape = b.shape(x)
    starts = a["starts"] if low is None else b.constant(low, "start").reshape(-1).tolist()
    ends = a["ends"] if high is None else b.constant(high, "end").reshape(-1).tolist()
    where = a.get("axes", list(range(len(starts)))) if axes is None else b.constant(axes, "axes").reshape(-1).tolist()
    steps = [1] * len(starts) if step is None else b.constant(step, "step").reshape(-1).tolist()
    cuts = [slice(None)] * len(shape)
    for first, last, axis, stride in zip(starts, ends, where, steps, strict=True):
        size = shape[axis % len(shape)]
        if stride == -1 and (first >= size - 1 or first == -1):
            if last > -size - 1:
                raise ModelError(f"Slice (node {b.node.name!r}) runs backward over a part; accepted is over the whole.")
            x = b.call(torch.flip, x, (axis % len(shape),))
            continue
        if stride < 1:
            raise ModelError(f"Slice (node {b.node.name!r}) has step {stride}; accepted are 1 or more, and -1.")
        cuts[axis % len(shape)] = slice(first or None, None if last >= size else last, stride if stride > 1 else None)
    return x if cuts == [slice(None)] * len(shape) else b.call(getitem, x, tuple(cuts))


@operator("Gather", folds=1)
def gather(b: Builder, a: Attributes, x: fx.Node, index: Value) -> fx.Node:
    x, where = b.tensor(x), b.constant(index, "index")
    axis = a.get("axis", 0) % len(b.shape(x))
    if x.target is torch.reshape and _takes_all(b, x.args[0], where):
        return x.args[0]  # type: ignore[return-value]
    if where.ndim == 0:
        return b.method("select", x, axis, int(where))
    flat = np.where(where < 0, where + b.shape(x)[axis], where).astype(np.int64).reshape(-1)
    taken = b.call(torch.index_select, x, axis, b.tensor(flat))
    return taken if where.ndim == 1 else b.method("unflatten", taken, axis, where.shape)


def _takes_all(b: Builder, source: Any, index: Array) -> bool:
    """Whether `index` into the flattened `source` only restores its shape: how dynamo writes a change of layout."""
    return b.shape(source) == index.shape and np.array_equal(index.reshape(-1), np.arange(index.size))


@operator("Expand", folds=1)
def expand(b: Builder, a: Attributes, x: Value, target: Value) -> fx.Node:
    x, wanted = b.tensor(x), b.constant(target, "shape").tolist()
    shape = b.shape(x)
    sizes = list(np.broadcast_shapes(shape, tuple(BATCH if s % BATCH == 0 else s for s in wanted)))
    kept = [-1 if own == size else size for own, size in zip(shape[::-1], sizes[::-1], strict=False)][::-1]
    return b.method("expand", x, *b.dims([*sizes[: len(sizes) - len(shape)], *kept]))


@operator("Tile", folds=1)
def tile(b: Builder, a: Attributes, x: Value, repeats: Value) -> fx.Node:
    return b.method("repeat", b.tensor(x), *b.dims(b.constant(repeats, "repeats")))


@operator("ConstantOfShape", folds=0)
def constant_of_shape(b: Builder, a: Attributes, target: Value) -> fx.Node:
    value = a.get("value", np.zeros(1, np.float32))
    return b.call(torch.full, tuple(b.dims(b.constant(target, "shape"))), value.item())
