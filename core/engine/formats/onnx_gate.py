"""What an ONNX file must be before any node of it is read: bounded, self-contained, float, made of plain operators.

The file is only parsed as protobuf here; neither ONNX's checker nor its shape inference runs on it, since both can be
made to crash or to fill the memory by a small hostile file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from core.errors import ModelError, UnsupportedOperator

LARGEST_FILE = 2**30  # bytes
MOST_NODES = 20_000
OLDEST_OPSET = 9
QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
)
MAGIC = ((b"PK\x03\x04", "a zip archive"), (b"\x80", "a pickle"), (b"<", "HTML or XML"), (b"{", "JSON"))


def open_model(path: Path) -> ModelProto:
    """The parsed file. Raises ModelError that says why it cannot be read."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ModelError(f"{path.name} has {size / 2**20:.0f} MB; accepted are up to {LARGEST_FILE // 2**20} MB.")
    content = path.read_bytes()
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        kind = next((what for magic, what in MAGIC if content.startswith(magic)), "truncated or not ONNX")
        raise ModelError(
            f"{path.name} cannot be read as ONNX: it is {kind}; accepted is a whole .onnx file."
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path.name} cannot be read as ONNX: it holds no operators; accepted is a whole .onnx file.")
    return model


def check(model: ModelProto, rounding: Collection[str] = ()) -> int:
    """The opset of a model that may be read. Raises ModelError that names the first thing that may not.

    `rounding` names the operators on integers that are accepted.
    """
    if len(model.graph.node) > MOST_NODES:
        raise ModelError(f"The model has {len(model.graph.node)} operators; accepted are up to {MOST_NODES}.")
    names = (name for part in (*model.graph.node, *model.graph.initializer) for name in _names(part))
    if any(isinstance(name, bytes) for name in names):  # what protobuf makes of text that is none
        raise ModelError("A name in the model is not text: the file is damaged; accepted is a whole .onnx file.")
    if model.functions:
        raise ModelError(f"The model defines its own function {model.functions[0].name!r}; accepted are none.")
    for node in model.graph.node:
        _check_node(node, rounding)
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"The values of {tensor.name!r} are in another file; accepted is one .onnx file that holds its weights "
                "(torch.onnx.export(..., external_data=False))."
            )
    if model.graph.sparse_initializer:
        raise ModelError("The model stores sparse weights; accepted are dense ones.")
    return _opset(model)


def _opset(model: ModelProto) -> int:
    newest = onnx.defs.onnx_opset_version()
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(f"The model has opset {opset}; accepted are {OLDEST_OPSET} to {newest}.")
    return int(opset)


def _check_node(node: NodeProto, rounding: Collection[str]) -> None:
    if node.op_type in QUANTIZED and node.op_type not in rounding:
        raise ModelError(
            f"The model is already quantized (operator {node.op_type}, node {node.name!r}); upload the float model."
        )
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedOperator(f"{node.domain}.{node.op_type}", node.name, "operators of ONNX itself")
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
        raise UnsupportedOperator(node.op_type, node.name, "operators without a graph inside")


def _names(part: NodeProto | TensorProto) -> tuple[str | bytes, ...]:
    if isinstance(part, TensorProto):
        return (part.name,)
    return (part.name, part.op_type, part.domain, *part.input, *part.output, *(a.name for a in part.attribute))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
