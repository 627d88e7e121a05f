"""Small ONNX files for tests: graphs built by hand, and torch networks written by both of PyTorch's exporters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    weights: Mapping[str, NDArray[np.generic]] | None = None,
    shape: Sequence[int | str | None] = ("n", 3, 8, 8),
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A file with one input `x` of `shape`."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, inputs: str, output: str = "y", name: str = "", **attributes: object) -> NodeProto:
    """`inputs` separated by spaces; '-' is one left out."""
    names = ["" if part == "-" else part for part in inputs.split()]
    return helper.make_node(kind, names, output.split(), name=name, **attributes)


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def export_dynamo(module: nn.Module, x: torch.Tensor, path: Path) -> Path:
    batch = torch.export.Dim("n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        torch.onnx.export(
            module, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
        )
    return path


def export_torchscript(module: nn.Module, x: torch.Tensor, path: Path, opset: int = 13, fixed: bool = False) -> Path:
    """With `fixed`, for one image only, BatchNorm kept."""
    mode = torch.onnx.TrainingMode.PRESERVE if fixed else torch.onnx.TrainingMode.EVAL
    axes = None if fixed else {"input": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x[:1] if fixed else x,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            dynamic_axes=axes,
            training=mode,
            do_constant_folding=not fixed,
        )
    return path


def run(path: Path, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What ONNX Runtime answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))
