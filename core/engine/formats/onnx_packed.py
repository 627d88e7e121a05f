"""Weights as integers of a few bits, packed, with the operators that make floats of them: codes × scales.

ONNX Runtime computes what hangs on stored numbers alone once, when the file is opened, so such a model runs at the
speed of one in float. Only DequantizeLinear is not computed ahead, which is why it is not used here.

Integers of 4 and 8 bits have types of their own. Those of other widths are stored as bit planes: plane b holds bit b of
every code, eight to a byte, the first in the highest place; shifting a byte left and then right takes one of them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8}
OPSET = {4: 21, 8: 13}  # the first that reads the type; others need 13 too
Array = NDArray[Any]


def pack(codes: Array, bits: int) -> TensorProto:
    """Integers (…) of 4 or 8 bits in their shape, or of any other width as planes (bits, bytes, 1)."""
    flat = codes.astype(np.int8).ravel()
    if bits not in TYPES:
        planes = (flat[None].view(np.uint8) >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
        return numpy_helper.from_array(np.packbits(planes, axis=1)[:, :, None])
    if bits == 4:
        pairs = np.append(flat, np.zeros(len(flat) % 2, np.int8)).astype(np.uint8).reshape(-1, 2) & 15
        flat = pairs[:, 0] | pairs[:, 1] << 4
    return TensorProto(data_type=TYPES[bits], dims=codes.shape, raw_data=flat.tobytes())


def read(tensor: TensorProto, shape: Sequence[int] | None) -> tuple[Array, int]:
    """The integers that `pack` stored, and their bits. `shape` is theirs, which planes do not tell."""
    if shape is None:
        bits = next(bits for bits, kind in TYPES.items() if kind == tensor.data_type)
        return numpy_helper.to_array(tensor).astype(np.int8), bits
    planes = numpy_helper.to_array(tensor)[:, :, 0]
    bits = len(planes)
    digits = np.unpackbits(planes, axis=1)[:, : math.prod(shape)].astype(np.int64)
    places = np.array([*(2**place for place in range(bits - 1)), -(2 ** (bits - 1))])
    return (places @ digits).astype(np.int8).reshape(shape), bits


def unpack(name: str, codes: Array, scales: Array, bits: int) -> tuple[list[NodeProto], list[TensorProto]]:
    """What makes the value `<name>.float` of codes (…) and scales, which have as many axes: nodes, and what they read.

    The first tensor holds the codes, the second the scales; those behind them are alike for every layer.
    """
    stored = [pack(codes, bits), numpy_helper.from_array(scales)]
    stored[0].name, stored[1].name = f"{name}.codes", f"{name}.scales"
    path = [stored[0].name]
    nodes: list[NodeProto] = []

    def then(kind: str, *inputs: str, before: bool = False, **attributes: Any) -> None:
        path.append(f"{name}.{len(path)}")
        read = [*inputs, path[-2]] if before else [path[-2], *inputs]
        nodes.append(helper.make_node(kind, read, path[-1:], **attributes))

    def number(label: str, value: Any, kind: type) -> str:
        stored.append(numpy_helper.from_array(np.array(value, kind), label))
        return label

    if bits not in TYPES:
        then("BitShift", number("bits.places", range(8), np.uint8), direction="LEFT")
        then("BitShift", number("bits.last", 7, np.uint8), direction="RIGHT")
        then("Reshape", number(f"bits.planes{bits}", (bits, -1), np.int64))
    then("Cast", to=TensorProto.FLOAT)
    if bits not in TYPES:
        values = [*(2**place for place in range(bits - 1)), -(2 ** (bits - 1))]  # two's complement
        then("MatMul", number(f"bits.values{bits}", [values], np.float32), before=True)
        if codes.size % 8:
            ends = (number(f"bits.{label}{value}", [value], np.int64) for label, value in
                    (("start", 0), ("end", codes.size), ("axis", 1)))  # fmt: skip
            then("Slice", *ends)
        then("Reshape", number(f"bits.shape{'x'.join(map(str, codes.shape))}", codes.shape, np.int64))
    nodes.append(helper.make_node("Mul", [path[-1], stored[1].name], [f"{name}.float"], name))
    return nodes, stored
