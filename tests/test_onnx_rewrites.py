"""Rewrites are exact, and leave alone what only looks like what they rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from core.engine import runtime
from core.engine.formats import onnx_rewrites

END = np.iinfo(np.int64).max


def shortcut(
    *,
    steps: tuple[int, int] = (2, 2),
    start: int = 0,
    end: int = END,
    pads: tuple[int, ...] = (0, 1, 0, 0, 0, 2, 0, 0),
    value: float = 0.0,
    mode: str = "constant",
    also: bool = False,
) -> ModelProto:
    """x (n, 3, 7, 6): every step-th row and column, empty channels around them; `also` reads the slice once more."""
    stored = {
        "start": np.array([start]), "end": np.array([end]), "rows": np.array([2]), "columns": np.array([3]),
        "row_step": np.array([steps[0]]), "column_step": np.array([steps[1]]), "pads": np.array(pads),
        "value": np.array(value, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "rows", "row_step"], ["a"], name="slice"),
        helper.make_node("Slice", ["a", "start", "end", "columns", "column_step"], ["b"], name="slice_1"),
        helper.make_node("Pad", ["b", "pads", "value"], ["y"], name="pad", mode=mode),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw"))]
    if also:
        nodes.append(helper.make_node("Relu", ["b"], ["z"], name="relu"))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, list("nchw")))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 7, 6])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def both(before: ModelProto, after: ModelProto, shape: tuple[int, ...] = (2, 3, 7, 6)) -> tuple[Any, Any]:
    onnx.checker.check_model(after)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    first, second = (runtime.run(runtime.open_file(model.SerializeToString()), x) for model in (before, after))
    return first, second


@pytest.mark.parametrize("steps", [(2, 2), (1, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize("around", [(1, 2), (0, 3), (2, 0)])
def test_an_empty_shortcut_is_a_convolution_with_an_identity(steps: tuple[int, int], around: tuple[int, int]) -> None:
    before = shortcut(steps=steps, pads=(0, around[0], 0, 0, 0, around[1], 0, 0))
    after = ModelProto()
    after.CopyFrom(before)
    onnx_rewrites.convolve_shortcuts(after)
    onnx_rewrites.drop_unused(after)
    assert [(node.op_type, node.name) for node in after.graph.node] == [("Conv", "pad")]
    assert [tensor.name for tensor in after.graph.initializer] == ["pad.weight"]
    np.testing.assert_array_equal(*both(before, after))


@pytest.mark.parametrize(
    "changes",
    [{"pads": (0, 1, 1, 0, 0, 2, 0, 0)}, {"pads": (1, 0, 0, 0, 0, 2, 0, 0)}, {"value": 1.0}, {"mode": "reflect"}],
    ids=str,
)
def test_padding_of_another_kind_stays(changes: dict[str, Any]) -> None:
    before = shortcut(**changes)
    after = ModelProto()
    after.CopyFrom(before)
    onnx_rewrites.convolve_shortcuts(after)
    assert after == before


@pytest.mark.parametrize("changes", [{"start": 1}, {"end": 4}, {"also": True}], ids=str)
def test_a_slice_of_another_kind_or_with_another_reader_stays_and_the_padding_alone_is_rewritten(
    changes: dict[str, Any],
) -> None:
    before = shortcut(**changes)
    after = ModelProto()
    after.CopyFrom(before)
    onnx_rewrites.convolve_shortcuts(after)
    assert "slice_1" in [node.name for node in after.graph.node]
    np.testing.assert_array_equal(*both(before, after))


def test_what_is_to_be_left_is_left() -> None:
    before = shortcut()
    after = ModelProto()
    after.CopyFrom(before)
    onnx_rewrites.convolve_shortcuts(after, leave={"pad"})
    assert after == before


def mean(axes: list[int], keepdims: int) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=keepdims)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 7, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw" if keepdims else "nc"))],
        [numpy_helper.from_array(np.array(axes), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("axes", "keepdims", "kinds"),
    [
        ([2, 3], 1, ["GlobalAveragePool"]),
        ([-1, -2], 1, ["GlobalAveragePool"]),
        ([2, 3], 0, ["GlobalAveragePool", "Flatten"]),
        ([1, 2], 1, ["ReduceMean"]),
        ([3], 1, ["ReduceMean"]),
    ],
)
def test_only_a_mean_over_the_whole_map_is_a_pool(axes: list[int], keepdims: int, kinds: list[str]) -> None:
    before = mean(axes, keepdims)
    after = ModelProto()
    after.CopyFrom(before)
    onnx_rewrites.average_whole_maps(after)
    onnx_rewrites.drop_unused(after)
    assert [node.op_type for node in after.graph.node] == kinds
    assert [node.name for node in after.graph.node] == ["mean", "mean.flatten"][: len(kinds)]
    np.testing.assert_allclose(*both(before, after), rtol=1e-5, atol=1e-6)
