"""finetune_quantized: what trains is the file that runs, codes go back on the same grid, accuracy comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from core.engine.context import Context, Outcome
from core.engine.data import Images, to_input, to_tensor
from core.engine.formats import onnx_codes
from core.engine.formats.onnx_packed import pack, read
from core.engine.formats.onnx_reader import read_model
from core.engine.formats.onnx_rounding import to_codes
from core.engine.techniques import finetune_quantized, prune_weights, quantize, quantize_weights
from core.errors import DataError, RecipeError
from core.options import FinetuneQuantized, PruneWeights, Quantize, QuantizeWeights
from tests.test_techniques import export
from tests.tiny import CARD, draw, tiny_context, tiny_data, tiny_model

OPTIONS = FinetuneQuantized(epochs=6, learning_rate=0.05, shift=0)
VALIDATION = draw(300, 3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def pruned(sparsity: float) -> nn.Module:
    model = tiny_model().module
    if sparsity:
        prune_weights.apply(model, PruneWeights(sparsity, repair=False), {}, tiny_context())
    return model


@cache
def exported(sparsity: float) -> ModelProto:
    return export(pruned(sparsity))


@cache
def quantized(kind: str, sparsity: float = 0.0, weights: str = "auto") -> ModelProto:
    """int8, another mode of the same step, or weights of some bits."""
    if kind.isdigit():
        return quantize_weights.apply(exported(sparsity), QuantizeWeights(int(kind)), {}, tiny_context()).model  # type: ignore[no-any-return]
    options = Quantize(mode=kind, weights=weights, equalize=False)
    return quantize.apply(exported(sparsity), options, {}, tiny_context()).model  # type: ignore[no-any-return]


@cache
def trained(kind: str, sparsity: float = 0.0, weights: str = "auto", epochs: int = 6) -> Outcome:
    context = replace(tiny_context(network=pruned(sparsity)), train=draw(1200, 2), validation=VALIDATION)
    options = replace(OPTIONS, epochs=epochs)
    return finetune_quantized.apply(quantized(kind, sparsity, weights), options, {}, context)


def answers(model: ModelProto, images: Images) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": to_input(images.x, CARD)})[0]


def accuracy(model: ModelProto) -> float:
    test = draw(500, 4)
    return float((answers(model, test).argmax(1) == test.y).mean())


def twin(model: ModelProto) -> nn.Module:
    return read_model(onnx_codes.in_floats(model)[0], CARD.input_shape, rounded=True).module


def tensors(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_packed_codes_are_read_back(bits: int) -> None:
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 3, 3), np.int8)
    found, width = read(pack(codes, bits), None if bits in (4, 8) else codes.shape)
    assert width == bits
    np.testing.assert_array_equal(found, codes)


def test_codes_by_hand_and_gradients_inside_the_range_alone() -> None:
    x = torch.tensor([-9.0, -0.3, 0.25, 0.75, 1.1, 200.0], requires_grad=True)
    codes = to_codes(x, 0.5, 10, 0, 255)
    assert codes.tolist() == [0, 9, 10, 12, 12, 255]  # halves to the even: 0.25 / 0.5 → 0, 0.75 / 0.5 → 2
    codes.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 2, 2, 2, 0]  # 1 / 0.5; nothing from below code 0 and above code 255


@pytest.mark.parametrize("kind", ["int8", "3"])
@pytest.mark.parametrize("after", [False, True])
def test_the_network_that_trains_answers_as_the_file_does(kind: str, after: bool) -> None:
    model = trained(kind, 0.9).model if after else quantized(kind, 0.9)
    test = tiny_data().test
    with torch.no_grad():
        expected = twin(model)(to_tensor(test.x, CARD)).numpy()
    found = answers(model, test)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.995
    step = 0.5 * np.abs(expected).max() / 127 if kind == "int8" else 1e-5 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < step


@pytest.mark.parametrize(("kind", "weights"), [("int8", "7"), ("3", "8")])
def test_only_codes_change_and_they_stay_within_their_bits(kind: str, weights: str) -> None:
    before, outcome = quantized(kind, 0.9, weights), trained(kind, 0.9, weights)
    assert [n.SerializeToString() for n in outcome.model.graph.node] == [
        n.SerializeToString() for n in before.graph.node
    ]
    assert len(outcome.model.SerializeToString()) == len(before.SerializeToString())
    first, second = tensors(before), tensors(outcome.model)
    changed = {name for name, value in first.items() if not np.array_equal(value, second[name])}
    known = ("stem.weight", "head.weight", "block.0.bias")
    assert all(any(name.startswith(layer) for name in changed) for layer in known)
    assert not [name for name in changed if "zero" in name or name.startswith(("input", "relu", "logits"))]
    if kind == "int8":
        assert max(np.abs(v).max() for v in second.values() if v.dtype == np.int8) <= 64


@pytest.mark.parametrize("kind", ["int8", "3"])
def test_what_was_lost_comes_back_on_the_exported_file(kind: str) -> None:
    before, after = accuracy(quantized(kind, 0.9)), accuracy(trained(kind, 0.9).model)
    assert after > before + 0.08, (before, after)


@pytest.mark.parametrize("kind", ["int8", "3"])
def test_the_curve_is_that_of_the_exported_file(kind: str) -> None:
    """Normalization, folded into scales and biases on the way, changes no answer."""
    outcome = trained(kind, 0.9)  # without a teacher: the best epoch is that of the highest accuracy
    found = float((answers(outcome.model, VALIDATION).argmax(1) == VALIDATION.y).mean())
    assert found == pytest.approx(max(outcome.curve, key=lambda row: row.merit).accuracy, abs=1.01 / len(VALIDATION))


@pytest.mark.parametrize("kind", ["int8", "3"])
def test_pruned_weights_stay_zero(kind: str) -> None:
    weights = {n: p for n, p in pruned(0.9).named_parameters() if n.endswith("weight") and p.ndim > 1}
    network = twin(trained(kind, 0.9).model)
    for name, weight in weights.items():
        assert not bool(network.get_parameter(name)[weight == 0].any()), name


def test_the_better_of_before_and_after_is_kept() -> None:
    train = tiny_data().train
    assert train.y is not None
    harmful = replace(tiny_context(), train=Images(train.x, (train.y + 1) % 4), teacher=None)
    before = quantized("3")
    outcome = finetune_quantized.apply(before, replace(OPTIONS, epochs=4, learning_rate=0.1), {}, harmful)
    assert outcome.curve[0].accuracy > max(row.accuracy for row in outcome.curve[1:])
    assert outcome.model.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)


@pytest.mark.parametrize("mode", ["int8_dynamic", "float16"])
def test_files_whose_rounding_is_not_in_them_are_refused(mode: str) -> None:
    with pytest.raises(RecipeError, match="received one in 16-bit floats or with ranges found at run time"):
        finetune_quantized.apply(quantized(mode), OPTIONS, {}, tiny_context())


def test_labels_or_a_teacher_are_needed() -> None:
    bare: Context = replace(tiny_context(), train=Images(tiny_data().train.x, None))
    with pytest.raises(DataError, match="needs labels"):
        finetune_quantized.apply(quantized("3"), OPTIONS, {}, bare)
