"""Operators and random small networks against ONNX Runtime, and what is refused, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from core.engine.formats.onnx_reader import read_onnx
from core.errors import ModelError, UnsupportedOperator
from tests.onnx_files import draw, node, run, write

CASES: dict[str, tuple[list[NodeProto], dict[str, NDArray[Any]]]] = {
    "pad": ([node("Pad", "x p")], {"p": np.array([0, 1, 0, 2, 0, 2, 1, 0])}),
    "pad by reflection": ([node("Pad", "x p", mode="reflect")], {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "pad two axes": ([node("Pad", "x p - a")], {"p": np.array([1, 2, 0, 1]), "a": np.array([3, 1])}),
    "expand": ([node("Expand", "x s")], {"s": np.array([1, 1, 3, 1, 1])[1:]}),
    "tile": ([node("Tile", "x r")], {"r": np.array([1, 2, 1, 3])}),
    "einsum": ([node("Einsum", "x w", equation="nchw, cd -> ndhw")], {"w": draw(3, 5)}),
    "concat": ([node("Relu", "x", "r"), node("Concat", "x r x", axis=-3)], {}),
    "split": ([node("Split", "x s", "a b", axis=2), node("Concat", "b a", axis=2)], {"s": np.array([3, 5])}),
    "where": ([node("Greater", "x z", "m"), node("Not", "m", "o"), node("Where", "o x z")], {"z": np.float32([0.5])}),
    "equal": (
        [node("Less", "x z", "a"), node("Equal", "x x", "b"), node("And", "a b", "c"), node("Cast", "c", to=1)],
        {"z": np.float32(0)},
    ),
    "or": (
        [node("Less", "x z", "a"), node("Greater", "x z", "b"), node("Or", "a b", "c"), node("Cast", "c", to=1)],
        {"z": np.float32(0.1)},
    ),
    "shape arithmetic": (
        [
            *(node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n axis", "m")),
            *(node("Concat", "m rest", "t", axis=0), node("Reshape", "x t")),
        ],
        {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1, 4])},
    ),
    "zeros of the batch's size": (
        [
            *(node("Shape", "x", "s"), node("ConstantOfShape", "s", "z"), node("Range", "a b c", "r")),
            *(node("Cast", "r", "f", to=1), node("Add", "z f", "g"), node("Mul", "x g")),
        ],
        {"a": np.array(0), "b": np.array(8), "c": np.array(1)},
    ),
    "gather that only restores a layout": (
        [
            *(node("Reshape", "x flat", "f"), node("Shape", "x", "s"), node("ReduceProd", "s", "n", keepdims=0)),
            *(node("Range", "zero n one", "r"), node("Reshape", "r s", "i"), node("Gather", "f i")),
        ],
        {"flat": np.array([-1]), "zero": np.array(0), "one": np.array(1)},
    ),
    "padding on one side": ([node("Conv", "x w", pads=[0, 1, 2, 0])], {"w": draw(4, 3, 3, 3)}),
    "same padding": ([node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": draw(4, 3, 3, 3)}),
    "pool with uneven padding": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 0, 2, 1])], {}),
    "bias beside its layer": (
        [node("Conv", "x w", "c"), node("Add", "c b")],
        {"w": draw(4, 3, 1, 1), "b": draw(4, 1, 1)},
    ),
    "matrix with bias": ([node("MatMul", "x w", "m"), node("Add", "b m")], {"w": draw(8, 5), "b": draw(5)}),
    "bias that others read too": (
        [node("Conv", "x w", "c"), node("Add", "c b", "d"), node("Mul", "c d")],
        {"w": draw(4, 3, 1, 1), "b": draw(4, 1, 1)},
    ),
    "upsampling": ([node("Resize", "x - f", mode="linear")], {"f": np.float32([1, 1, 2, 1.5])}),
    "rows upside down": (
        [node("Slice", "x a b c d")],
        {"a": np.array([-1]), "b": np.array([-(2**63)]), "c": np.array([2]), "d": np.array([-1])},
    ),
    "mean over channels": ([node("ReduceMean", "x", axes=[1], keepdims=0)], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_runtime_answers(name: str, tmp_path: Path) -> None:
    nodes, weights = CASES[name]
    path, x = write(tmp_path / "m.onnx", nodes, weights, opset=18 if "axes" in name else 17), draw(3, 3, 8, 8)
    with torch.no_grad():
        found = read_onnx(path)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, run(path, x)[0], rtol=1e-4, atol=1e-5)


def test_constant_beside_one_image_goes_beside_each(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "f"), node("Concat", "t f", axis=1)]
    path = write(tmp_path / "m.onnx", nodes, {"s": np.array([1, -1, 8]), "t": draw(1, 2, 8)}, (1, 3, 8, 8))
    x = draw(3, 3, 8, 8)
    with torch.no_grad():
        found = read_onnx(path)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, np.concatenate([run(path, x[i : i + 1])[0] for i in range(3)]))


@st.composite
def networks(choose: st.DrawFn) -> tuple[list[NodeProto], dict[str, NDArray[Any]]]:
    """A random chain of layers over (n, 3, 8, 8), with a residual sum wherever shapes allow it, and a classifier."""
    nodes: list[NodeProto] = []
    weights: dict[str, NDArray[Any]] = {}
    now, channels, side = "x", 3, 8
    for i in range(choose(st.integers(1, 5))):
        kind = choose(st.sampled_from(["conv", "depthwise", "norm", "act", "pool", "sum"]))
        new = f"t{i}"
        if kind in ("conv", "depthwise"):
            groups = channels if kind == "depthwise" else 1
            width = channels if kind == "depthwise" else choose(st.sampled_from([2, 4, 6]))
            kernel, stride = choose(st.sampled_from([1, 3])), choose(st.sampled_from([1, 2]))
            pads = [choose(st.integers(0, 1)) for _ in range(2)] * 2 if kernel == 3 else [0] * 4
            nodes.append(node("Conv", f"{now} l{i}.weight", new, group=groups, strides=[stride] * 2, pads=pads))
            weights[f"l{i}.weight"] = draw(width, channels // groups, kernel, kernel, seed=i)
            sizes = {(side + 2 * pads[j] - kernel) // stride + 1 for j in range(2)}
            if len(sizes) > 1 or min(sizes) < 2:
                nodes.pop()
                continue
            channels, side = width, sizes.pop()
        elif kind == "norm":
            nodes.append(node("BatchNormalization", f"{now} l{i}.weight l{i}.b l{i}.m l{i}.v", new))
            parts = {"weight": draw(channels, seed=i), "b": draw(channels), "m": draw(channels)}
            weights |= {f"l{i}.{k}": v for k, v in parts.items()} | {f"l{i}.v": np.abs(draw(channels)) + 0.5}
        elif kind == "act":
            nodes.append(node(choose(st.sampled_from(["Relu", "HardSwish", "Sigmoid", "LeakyRelu"])), now, new))
        elif kind == "pool" and side >= 4:
            shape = choose(st.sampled_from([("MaxPool", 1), ("MaxPool", 0), ("AveragePool", 0)]))
            nodes.append(node(shape[0], now, new, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=shape[1]))
            side = -(-side // 2) if shape[1] else side // 2
        elif kind == "sum":
            nodes += [node("Tanh", now, f"s{i}"), node("Add", f"{now} s{i}", new)]
        else:
            continue
        now = new
    nodes += [node("GlobalAveragePool", now, "g"), node("Flatten", "g", "f"), node("Gemm", "f fc.weight fc.bias")]
    return nodes, {**weights, "fc.weight": draw(channels, 4), "fc.bias": draw(4)}


@settings(max_examples=40)
@given(network=networks())
def test_random_networks(network: tuple[list[NodeProto], dict[str, Any]], tmp_path_factory: Any) -> None:
    path, x = write(tmp_path_factory.getbasetemp() / "random.onnx", *network), draw(3, 3, 8, 8)
    with torch.no_grad():
        found = read_onnx(path)(torch.from_numpy(x)).numpy()
    expected = run(path, x)[0]
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))


def external() -> ModelProto:
    tensor = TensorProto(name="w", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    graph = helper.make_graph([node("Add", "x w")], "g", [helper.make_tensor_value_info("x", 1, [1, 3])], [], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "quantized": (
        {"nodes": [node("QuantizeLinear", "x")]},
        "already quantized .*QuantizeLinear.* upload the float model",
    ),
    "loop": (
        {"nodes": [node("Loop", "x x", body=helper.make_graph([], "b", [], []))]},
        "Loop .*without a graph inside",
    ),
    "opset": ({"nodes": [node("Relu", "x")], "opset": 8}, "opset 8; accepted are 9 to"),
    "integers": ({"nodes": [node("Relu", "x")], "kind": 7}, "'x' is of type INT64; accepted is float"),
    "missing": ({"nodes": [node("Add", "x z", name="sum")]}, r"Add \(node 'sum'\) reads 'z', which nothing"),
    "no answer": ({"nodes": [node("Shape", "x")]}, "'y' does not depend on its input"),
    "computed weight": ({"nodes": [node("Conv", "x x", name="c")]}, r"Conv \(node 'c'\) needs a constant weight"),
    "batch mixed": ({"nodes": [node("ReduceSum", "x")]}, "ReduceSum .*mixes the images"),
    "channels": (
        {"nodes": [node("Conv", "x w", name="c")], "weights": {"w": draw(4, 5, 3, 3)}},
        r"Conv \(node 'c'\) does not fit its inputs",
    ),
    "huge constant": (
        {"nodes": [node("ConstantOfShape", "s", "c"), node("Add", "x c")], "weights": {"s": np.array([2**20, 2**20])}},
        "ConstantOfShape .* makes 1,099,511,627,776 values",
    ),
    "huge activation": (
        {"nodes": [node("Pad", "x p")], "weights": {"p": np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20])}},
        "Pad .* values for one image; accepted are up to",
    ),
    "smoothed resize": (
        {"nodes": [node("Resize", "x - f", mode="linear", antialias=1)], "weights": {"f": np.float32([1, 1, 2, 2])}},
        "antialias",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    made, sentence = REFUSED[name]
    path = write(tmp_path / "m.onnx", **{"opset": 18, **made})
    with pytest.raises(ModelError, match=sentence) as caught:
        read_onnx(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"NonZero \(node 'nz'\).*supported are Abs, Add") as caught:
        read_onnx(write(tmp_path / "m.onnx", [node("NonZero", "x", name="nz")]))
    assert (caught.value.operator, caught.value.node) == ("NonZero", "nz")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.onnx", [node("Conv", "x w")], {"w": draw(64, 3, 3, 3)}).read_bytes()
    for content, sentence in [
        (whole[:2000], "truncated or not ONNX"),
        (b"", "holds no operators"),
        (b"PK\x03\x04" + b"\xff" * 50, "a zip archive"),
        (b"<!DOCTYPE html>", "HTML"),
        (external().SerializeToString(), "'w' are in another file"),
        (whole[:300] + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "truncated or not ONNX"),
    ]:
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=sentence):
            read_onnx(path)
