"""Costs read off a file: by hand for small graphs, against torch's own counter for networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from core.cards import ModelCard
from core.catalog import Quantize
from core.engine.formats import onnx_facts, onnx_writer
from core.engine.techniques import quantize
from tests.nets import Net
from tests.shared_data import shared
from tests.tiny import CARD, tiny_context, tiny_model


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], out: str, c: int = 2) -> Path:
    """A file with input x (n, c, 4, 4) and weights of ones."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", c, 4, 4])],
        [onnx.ValueInfoProto(name=out)],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    graph.output[0].CopyFrom(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_grouped_and_a_transposed_convolution_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="depthwise", group=2, pads=[1] * 4),
        helper.make_node("ConvTranspose", ["a", "t"], ["y"], name="up", strides=[2, 2]),
    ]
    file = write(tmp_path / "f.onnx", nodes, {"w": (2, 1, 3, 3), "b": (2,), "t": (2, 5, 2, 2)}, "y")
    facts = onnx_facts.file_facts(file)
    # depthwise: 2 × 4 × 4 outputs × 9; transposed: 2 × 4 × 4 inputs × 5 × 2 × 2
    assert facts.node_macs == {"depthwise": 288, "up": 640}
    assert (facts.params, facts.macs) == (18 + 2 + 40, 928)


def test_matrix_products_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "g", "b"], ["y"], name="second", transB=1),
    ]
    file = write(tmp_path / "f.onnx", nodes, {"m": (32, 6), "g": (3, 6), "b": (3,)}, "y")
    facts = onnx_facts.file_facts(file)
    assert facts.node_macs == {"first": 192, "second": 18}
    assert facts.params == 192 + 18 + 3


def test_peak_memory_of_a_residual_block_by_hand(tmp_path: Path) -> None:
    """x: 2·4·4 floats = 128 B; each convolution makes 4·4·4 floats = 256 B; ReLU and the sum write in place."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["s"]),
        helper.make_node("Conv", ["s", "v"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["c", "r"], ["y"]),
    ]
    file = write(tmp_path / "f.onnx", nodes, {"w": (4, 2, 3, 3), "v": (4, 4, 3, 3)}, "y")
    # at the third convolution: the kept r, its input s and its output c
    assert onnx_facts.file_facts(file).peak_bytes == 3 * 256


def test_a_value_that_somebody_still_needs_is_not_written_over(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),  # x is read again: r needs its own 128 B
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    assert onnx_facts.file_facts(write(tmp_path / "f.onnx", nodes, {}, "y")).peak_bytes == 256


@pytest.mark.parametrize("blocks", [["residual", "depthwise"], ["concat", "squeeze"], ["project", "pool", "twice"]])
def test_macs_are_those_of_torchs_counter(blocks: list[str], tmp_path: Path) -> None:
    net = Net(blocks, [6, 4, 5, 7], "mlp")
    onnx_writer.export(net, ModelCard("net", "Net", (3, 8, 8), tuple("abcde")), tmp_path / "net.onnx")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 8, 8))
    assert onnx_facts.file_facts(tmp_path / "net.onnx").macs == counter.get_total_flops() // 2


def test_a_quantized_file_has_the_same_parameters_and_macs_and_a_quarter_of_the_memory(tmp_path: Path) -> None:
    onnx_writer.export(tiny_model().module, CARD, tmp_path / "float.onnx")
    outcome = quantize.apply(onnx.load(tmp_path / "float.onnx"), Quantize(), {}, tiny_context())
    onnx_writer.save(outcome.model, tmp_path / "int8.onnx")
    before, after = (onnx_facts.file_facts(tmp_path / f"{name}.onnx") for name in ("float", "int8"))
    assert (after.params, after.macs, after.node_macs) == (before.params, before.macs, before.node_macs)
    # three maps of 16 × 12 × 12 meet in the block: as floats, then as bytes
    assert (before.peak_bytes, after.peak_bytes) == (3 * 2304 * 4, 3 * 2304)


def test_resnet20_has_its_published_cost() -> None:
    facts = onnx_facts.file_facts(shared("checkpoints/resnet20_cifar10.onnx"))
    assert facts.params == 269_034  # 0.27 M, BatchNorm folded into biases
    assert facts.macs == 40_551_040  # 40.6 M; shortcuts have no parameters here
