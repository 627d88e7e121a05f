"""ONNX file → `torch.fx` graph of ordinary `nn` layers, which can be pruned, trained and exported again.

One function per operator, entered in a table (`onnx_builder.OPERATORS`); this file walks the nodes. The batch size is
free whatever the file says; other sizes are those of the input. Layers keep the names they had before the export.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from torch import fx

from core.engine.formats import (
    onnx_arithmetic,
    onnx_gate,
    onnx_layers,
    onnx_pads,
    onnx_resize,
    onnx_rounding,
    onnx_shapes,
    onnx_windows,
)
from core.engine.formats.onnx_builder import BATCH, OPERATORS, Builder, Value
from core.engine.formats.onnx_constants import attributes_of, constant_value, fold, to_array
from core.engine.formats.onnx_names import Names
from core.errors import ModelError, StudioError, UnsupportedOperator

DEFAULT_INPUT = (3, 224, 224)  # for axes that the file leaves open
TABLES = (
    onnx_arithmetic,
    onnx_layers,
    onnx_pads,
    onnx_resize,
    onnx_rounding,
    onnx_shapes,
    onnx_windows,
)  # importing them fills OPERATORS


@dataclass(frozen=True)
class Imported:
    """A network and what its file says about it. Shapes are without the batch axis."""

    module: fx.GraphModule
    input_shape: tuple[int, ...]  # channels, height, width for an image
    output_shapes: tuple[tuple[int, ...], ...]
    batch: int | None  # the batch size fixed in the file; None when any runs
    channels_last: bool  # the file takes (n, height, width, channels); the module takes channels first


def read_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> fx.GraphModule:
    """The network in `path`, in evaluation mode. Raises ModelError or UnsupportedOperator."""
    return read_file(path, input_shape).module


def read_file(path: Path, input_shape: tuple[int, ...] | None = None) -> Imported:
    """As `read_onnx`, with the shapes. `input_shape` (channels, height, width) fills axes that the file leaves open."""
    return read_model(onnx_gate.open_model(path), input_shape)


def read_model(model: ModelProto, input_shape: tuple[int, ...] | None = None, rounded: bool = False) -> Imported:
    """As `read_file`, for a file that is open. With `rounded`, values may be rounded to integers on the way."""
    opset = onnx_gate.check(model, onnx_rounding.KINDS if rounded else ())
    graph = model.graph
    source = _input_of(graph)
    filed = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in _dims(source)]
    last = _is_channels_last(graph, source.name, filed)
    shape = _input_shape(source.name, [filed[i] for i in (3, 1, 2)] if last else filed[1:], input_shape)
    uses = Counter(name for node in graph.node for name in node.input) + Counter(v.name for v in graph.output)
    build = Builder(opset, filed[0] or 1, Names(graph.node), uses)
    values = _start(build, graph, source.name, shape, last)
    for node in graph.node:
        build.node = node
        try:
            _read(build, node, values)
        except StudioError:
            raise
        except Exception as error:  # whatever an operator raises comes from what the file says
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
            raise ModelError(f"{node.op_type} (node {node.name!r}) does not fit its inputs: {reason}.") from error
    batch = build.filed_batch if filed[0] or build.frozen else None
    return Imported(*_finish(build, graph, values, shape), batch, last)


def _input_of(graph: GraphProto) -> ValueInfoProto:
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise ModelError(f"The model has {len(inputs)} inputs ({names}); accepted is one, the image.")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
        raise ModelError(f"The model's input {inputs[0].name!r} is of type {name}; accepted is float.")
    return inputs[0]


def _dims(source: ValueInfoProto) -> Any:
    return source.type.tensor_type.shape.dim


def _is_channels_last(graph: GraphProto, name: str, filed: list[int | None]) -> bool:
    """An image (n, height, width, channels) that no convolution reads as it is: TensorFlow's layout."""
    if len(filed) != 4 or filed[3] not in (1, 3) or min(filed[1] or 0, filed[2] or 0) < 8:
        return False
    return not any(node.op_type == "Conv" and name in node.input for node in graph.node)


def _input_shape(name: str, filed: list[int | None], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The file's sizes; open ones from `wanted`, else the default of an image."""
    if wanted is None and len(filed) == len(DEFAULT_INPUT):
        wanted = DEFAULT_INPUT
    fits = wanted is None or (
        len(wanted) == len(filed) and all(f in (None, w) for f, w in zip(filed, wanted, strict=True))
    )
    if wanted is DEFAULT_INPUT or (fits and wanted is not None):
        return tuple(f or w for f, w in zip(filed, wanted, strict=True))
    if not filed:
        raise ModelError(f"The model's input {name!r} has no axes besides the batch; accepted are images.")
    if not fits or None in filed:
        raise ModelError(
            f"The model's input {name!r} takes {_sizes(filed)} per image; received {_sizes(wanted or ())}."
        )
    return tuple(f for f in filed if f)


def _sizes(shape: Any) -> str:
    return " × ".join("any" if size is None else str(size) for size in shape) or "no sizes"


def _start(b: Builder, graph: GraphProto, name: str, shape: tuple[int, ...], last: bool) -> dict[str, Value]:
    """The values that are there before the first node: the input and the stored tensors."""
    values: dict[str, Value] = {"": None}
    for tensor in graph.initializer:
        array = to_array(tensor)
        values[tensor.name] = array
        b.trained[id(array)] = tensor.name
    image = b.input(name, (BATCH, *shape))
    values[name] = b.method("permute", image, 0, 2, 3, 1) if last else image
    return values


def _read(b: Builder, node: NodeProto, values: dict[str, Value]) -> None:
    """Read one node: its outputs enter `values`."""
    missing = next((name for name in node.input if name not in values), None)
    if missing is not None:
        raise ModelError(f"{node.op_type} (node {node.name!r}) reads {missing!r}, which nothing before it makes.")
    inputs, attributes = [values[name] for name in node.input], attributes_of(node)
    made: Any
    if node.op_type == "Constant":
        made = constant_value(attributes)
    elif node.op_type not in OPERATORS:
        raise UnsupportedOperator(node.op_type, node.name, ", ".join(sorted(OPERATORS)))
    else:
        function = OPERATORS[node.op_type]
        try:
            inspect.signature(function).bind(b, attributes, *inputs)
        except TypeError as error:
            raise ModelError(f"{node.op_type} (node {node.name!r}) cannot have {len(inputs)} inputs.") from error
        known = fold(b, attributes, inputs)
        made = function(b, attributes, *inputs) if known is None else known
    values.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))


def _finish(
    b: Builder, graph: GraphProto, values: dict[str, Value], shape: tuple[int, ...]
) -> tuple[fx.GraphModule, tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The graph closed with its outputs, cleaned of what nothing reads."""
    outputs = [values.get(value.name) for value in graph.output]
    for value, made in zip(graph.output, outputs, strict=True):
        if not isinstance(made, fx.Node):
            raise ModelError(f"The model's output {value.name!r} does not depend on its input; accepted is an answer.")
        if b.shape(made)[:1] != (BATCH,):
            raise ModelError(f"The model's output {value.name!r} has no batch axis; accepted is one answer per image.")
    if not outputs:
        raise ModelError("The model has no output; accepted is at least one.")
    b.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))  # type: ignore[arg-type]
    shapes = tuple(b.shape(made)[1:] for made in outputs)
    for node in b.graph.nodes:
        node.meta.clear()
    module = fx.GraphModule(b.root, b.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    return module.eval(), shape, shapes
