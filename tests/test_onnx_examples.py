"""Each operator against the examples that ONNX publishes with its definition."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx.backend.test.case.node as published
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from core.engine.formats.onnx_builder import OPERATORS
from core.engine.formats.onnx_reader import read_onnx
from core.errors import StudioError

# Operators whose published examples all mix images, work on text or take no float input: tested below instead.
ELSEWHERE = {"And", "Cast", "Concat", "ConstantOfShape", "Einsum", "Equal", "Expand", "Not", "Or", "Pad", "Range"} | {
    *("Shape", "Size", "Tile", "Where", "Split", "QuantizeLinear", "DequantizeLinear")  # the last two: fine-tuning
}


def examples() -> list[tuple[str, str, ModelProto, list[NDArray[Any]], NDArray[Any]]]:
    """(name, operator, model, inputs, first output) of ONNX's own node tests that start from one float tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its examples overflow on purpose
        for module in pkgutil.iter_modules(published.__path__):
            if module.name.replace("_", "") in {kind.lower() for kind in OPERATORS}:
                importlib.import_module(f"{published.__name__}.{module.name}")
    rows = []
    for case in published._NodeTestCases:  # collect_testcases would import those of all operators
        if case.model is None or len(case.model.graph.node) != 1 or case.model.graph.node[0].op_type not in OPERATORS:
            continue
        inputs, outputs = case.data_sets[0]
        if inputs and all(isinstance(v, np.ndarray) for v in inputs) and inputs[0].dtype == np.float32:
            rows.append((case.name, case.model.graph.node[0].op_type, case.model, list(inputs), outputs[0]))
    return rows


def with_batch(model: ModelProto, inputs: list[NDArray[Any]], output: NDArray[Any]) -> tuple[Any, Any, Any]:
    """All inputs but the first as weights, and a batch axis in front of vectors."""
    copied = ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[1:]
    first = inputs[0]
    if first.ndim == 1:
        inputs = [v[None] if v.shape == first.shape else v for v in inputs]
        output = output[None]
        shape = copied.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for size in inputs[0].shape:
            shape.dim.add(dim_value=size)
    for value, array in list(zip(copied.graph.input, inputs, strict=True))[1:]:
        copied.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return copied, inputs[0], output


def test_published_examples(tmp_path: Path) -> None:
    """Each is answered as ONNX says or refused with a sentence; no operator is refused in all its examples."""
    passed, path = Counter[str](), tmp_path / "m.onnx"
    for name, kind, model, inputs, output in examples():
        if inputs[0].ndim == 1 and kind in ELSEWHERE | {"Gather", "MatMul", "Reshape", "Slice", "Squeeze", "Unsqueeze"}:
            continue
        changed, x, expected = with_batch(model, inputs, output)
        path.write_bytes(changed.SerializeToString())
        try:
            module = read_onnx(path)
        except StudioError:
            continue
        with torch.no_grad():
            found = module(torch.from_numpy(x.copy()))
        found = (found[0] if isinstance(found, tuple) else found).numpy()
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=name)
        passed[kind] += 1
    assert set(OPERATORS) - ELSEWHERE - set(passed) == set()
    assert passed.total() >= 280
