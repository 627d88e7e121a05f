"""Rewrites are exact, and leave alone what only looks like what they rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from core.engine import runtime
from core.engine.formats import onnx_rewrites


def both(before: ModelProto, after: ModelProto, shape: tuple[int, ...] = (2, 3, 7, 6)) -> tuple[Any, Any]:
    onnx.checker.check_model(after)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    first, second = (runtime.run(runtime.open_file(model.SerializeToString()), x) for model in (before, after))
    return first, second


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
