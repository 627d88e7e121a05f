"""Answers of an integer file in float: nothing reads them but a person, and 256 steps make ties of near ones.

What follows the last layer, as a pool and a reshape, then computes in float too: on so few numbers that costs no time.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

# A convolution without a quantized output would leave the integer kernel; these have one that ends in float, or are
# hardly noticed in float. What `MOVES` only hands on is looked through.
MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "GlobalAveragePool", "Softmax"}
ENDS = MOVES | {"Gemm", "MatMul"}


def leave_in_float(model: ModelProto) -> None:
    """Take the QuantizeLinear and DequantizeLinear behind the last operators out of the file, in place."""
    for value in [output.name for output in model.graph.output]:
        name: str | None = value
        while name is not None:
            name = _freed(model, name)


def _freed(model: ModelProto, value: str) -> str | None:
    """The value that is to be looked at next, after the pair of nodes behind `value`, if any, is gone; None at the
    end."""
    makers = {name: node for node in model.graph.node for name in node.output}
    maker = makers.get(value)
    if maker is not None and maker.op_type == "DequantizeLinear":
        coder = makers.get(maker.input[0])
        source = makers.get(coder.input[0]) if coder is not None and coder.op_type == "QuantizeLinear" else None
        if source is None or source.op_type not in ENDS or not _alone(model, maker, coder, source):
            return None
        source.output[0] = value
        model.graph.node.remove(maker)
        model.graph.node.remove(coder)
        maker = source
    return maker.input[0] if maker is not None and maker.op_type in MOVES else None


def _alone(model: ModelProto, *nodes: NodeProto | None) -> bool:
    """Whether nothing else reads what the nodes make, and the first is read once at most."""
    read = [name for node in model.graph.node for name in node.input]
    first, *rest = [node.output[0] for node in nodes if node is not None]
    return read.count(first) <= 1 and all(read.count(name) == 1 for name in rest)
