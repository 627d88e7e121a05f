"""Answers of integer files: in float behind the last layer, in steps only where an integer kernel needs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import runtime
from core.engine.calibrated import weight_bits
from core.engine.context import silent
from core.engine.formats import onnx_answers, onnx_int8, onnx_rewrites, onnx_writer
from core.options import Quantize

CARD = ModelCard("net", "Net", (3, 8, 8), tuple("abcd"))
X = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)


class Ending(nn.Module):
    """A convolution, and one of four ends. (n, 3, 8, 8) → (n, 4), or a map (n, 4, 8, 8)."""

    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.end = end
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        if self.end in ("linear", "softmax"):
            answer = self.head(x.mean((2, 3)))
            return answer.softmax(1) if self.end == "softmax" else answer
        x = self.last(x)
        return x.mean((2, 3)) if self.end == "pool" else x


def integer(end: str, folder: Path) -> tuple[ModelProto, ModelProto]:
    """The file in float and in integers."""
    onnx_writer.export(Ending(end).eval(), CARD, folder / "float.onnx")
    plain = onnx.load(folder / "float.onnx")
    onnx_rewrites.average_whole_maps(plain)
    return plain, onnx_int8.write(onnx_int8.calibrate(plain, X, "minmax", silent), (), bits=weight_bits(Quantize()))


def answers(model: ModelProto) -> np.ndarray:
    return runtime.run(runtime.open_file(model.SerializeToString()), X)


@pytest.mark.parametrize("end", ["linear", "softmax", "pool"])
def test_answers_are_no_steps(end: str, tmp_path: Path) -> None:
    plain, model = integer(end, tmp_path)
    onnx.checker.check_model(model, full_check=True)
    maker = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    assert maker.op_type not in ("DequantizeLinear", "QuantizeLinear")
    expected, found = answers(plain), answers(model)
    between = np.unique(np.diff(np.unique(found)).round(7))
    assert len(between) > 10  # steps of one size, and a few multiples of it, if they were codes
    assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


def test_the_last_layer_stays_in_its_integer_kernel(tmp_path: Path) -> None:
    _, model = integer("linear", tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (kinds["QGemm"], kinds["Gemm"], kinds["DequantizeLinear"]) == (1, 0, 0)


def test_a_convolution_keeps_its_steps(tmp_path: Path) -> None:
    """Without them it would compute in float."""
    _, model = integer("map", tmp_path)
    assert model.graph.node[-1].op_type == "DequantizeLinear"


def test_what_something_else_reads_too_stays(tmp_path: Path) -> None:
    _, model = integer("linear", tmp_path)
    before = model.SerializeToString(deterministic=True)
    onnx_answers.leave_in_float(model)
    assert model.SerializeToString(deterministic=True) == before  # done once already
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["steps", "input_scale", "input_zero_point"], ["codes"]),
        onnx.helper.make_node("DequantizeLinear", ["codes", "input_scale", "input_zero_point"], [gemm.output[0]]),
        onnx.helper.make_node("Relu", ["steps"], ["other"]),
    ]
    gemm.output[0] = "steps"
    model.graph.node.extend(pair)
    count = len(model.graph.node)
    onnx_answers.leave_in_float(model)
    assert len(model.graph.node) == count
