"""Weights of an integer file that make up for each other's rounding: on their grid, kept only where that helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import calibrated, runtime
from core.engine.accurate import Answers
from core.engine.context import Context, silent
from core.engine.data import Images, to_input
from core.engine.formats import onnx_int8, onnx_rewrites, onnx_writer
from core.engine.formats.onnx_rewrites import stored_values
from core.engine.techniques import quantize
from core.options import Quantize

CARD = ModelCard("wide", "Wide", (3, 8, 8), tuple("abcd"), mean=(0.5,), std=(0.25,))
LAYERS = {"stem", "middle", "depth", "head"}
ROUNDED = LAYERS - {"depth"}  # in groups, it is rounded to nearest
PLAIN = Quantize(equalize=False, correct=False, weights="8")


class Wide(nn.Module):
    """Layers of many inputs and one of few, each channel with one weight so large that the others get few steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.depth, self.head = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Linear(32, 4)
        for layer in (self.stem, self.middle, self.head):
            layer.weight.data.flatten(1)[:, 0] *= 12

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.depth(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    file = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx_writer.export(Wide().eval(), CARD, file)
    model = onnx.load(file)
    onnx_rewrites.average_whole_maps(model)
    return model


def draw(count: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return Images(np.clip(coarse + rng.integers(-20, 21, coarse.shape), 0, 255).astype(np.uint8), None)


CONTEXT = Context(CARD, draw(4, 0), draw(128, 1), draw(64, 2), False, None)
FRESH = to_input(draw(128, 3).x, CARD)


def both(plain: ModelProto, options: Quantize = PLAIN) -> tuple[onnx_int8.Calibrated, onnx_int8.Calibrated]:
    """Calibrated, with weights as they are and with those that make up for each other."""
    answers = Answers(plain, CONTEXT)
    x = to_input(CONTEXT.calibration.x, CARD)
    found = calibrated.calibrated(plain, x, options, LAYERS, answers, silent)
    return found, calibrated.compensated(found, options, LAYERS, answers, CONTEXT)[0]


def answers(model: ModelProto) -> NDArray[np.float32]:
    return runtime.run(runtime.open_file(model.SerializeToString()), FRESH)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last way is taken, whatever the answers say."""
    monkeypatch.setattr(calibrated, "_best", lambda ways, *_: ways[-1])


def with_weights_of(file: ModelProto, plain: ModelProto) -> ModelProto:
    """`plain`, in float, with the weights that `file` holds in integers."""
    model, stored = onnx.ModelProto(), stored_values(file)
    model.CopyFrom(plain)
    for tensor in model.graph.initializer:
        if f"{tensor.name}_quantized" in stored and tensor.name.endswith("weight"):
            codes, scales = stored[f"{tensor.name}_quantized"], stored[f"{tensor.name}_scale"]
            values = codes * scales.reshape(-1, *[1] * (codes.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("bits", ["8", "7"])
def test_weights_that_make_up_for_each_other_change_answers_less(bits: str, plain: ModelProto) -> None:
    """On fresh images; means aside, which biases make up for."""
    files = [onnx_int8.write(way, (), bits=int(bits)) for way in both(plain, replace(PLAIN, weights=bits))]
    off = [answers(with_weights_of(file, plain)) - answers(plain) for file in files]
    nearest, found = (float((error - error.mean(0)).std()) for error in off)
    assert found < 0.6 * nearest


@pytest.mark.usefixtures("kept")
def test_the_file_holds_the_very_codes_that_were_found(plain: ModelProto) -> None:
    _, found = both(plain)
    assert {name.removesuffix(".weight") for name in found.codes} == ROUNDED
    file = stored_values(onnx_int8.write(found, ()))
    for name, (codes, steps) in found.codes.items():
        assert np.array_equal(file[f"{name}_quantized"], codes)
        assert codes.min() >= -127
        assert np.array_equal(file[f"{name}_scale"], steps)


@pytest.mark.usefixtures("kept")
def test_the_bias_of_an_empty_output_has_a_code_that_a_float_can_count(plain: ModelProto) -> None:
    """A step as fine as its weights would need more; training counts codes in floats."""
    emptied = onnx.ModelProto()
    emptied.CopyFrom(plain)
    for tensor in emptied.graph.initializer:
        if tensor.name == "stem.weight":
            weight = numpy_helper.to_array(tensor).copy()
            weight[3] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    _, found = both(emptied)
    file, bias = stored_values(onnx_int8.write(found, ())), stored_values(emptied)["stem.bias"]
    assert np.abs(file["stem.bias_quantized"]).max() < 2**24
    assert np.allclose(file["stem.bias_quantized"] * file["stem.bias_quantized_scale"], bias, atol=1e-3)


@pytest.mark.usefixtures("kept")
def test_layers_in_float_keep_their_weights_and_are_stored_as_the_same_codes(plain: ModelProto) -> None:
    _, found = both(plain)
    file = onnx_int8.write(found, ["middle"])
    assert np.array_equal(stored_values(file)["middle.weight"], stored_values(plain)["middle.weight"])
    onnx_int8.store_in_bytes(file, ["middle"], found.codes)
    kept = stored_values(file)
    assert np.array_equal(kept["middle.weight.codes"], found.codes["middle.weight"][0])
    assert np.array_equal(kept["middle.weight.scales"].ravel(), found.codes["middle.weight"][1])


@pytest.mark.usefixtures("kept")
def test_weights_with_outputs_along_the_second_axis(plain: ModelProto) -> None:
    """As a product with a matrix has them."""
    turned = onnx.ModelProto()
    turned.CopyFrom(plain)
    head = next(node for node in turned.graph.node if node.name == "head")
    del head.attribute[:]
    for tensor in turned.graph.initializer:
        if tensor.name == head.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), tensor.name))
    assert np.allclose(answers(turned), answers(plain), atol=1e-5)
    (_, found), (_, straight) = both(turned), both(plain)
    assert np.array_equal(found.codes["head.weight"][0], straight.codes["head.weight"][0].T)
    file = stored_values(onnx_int8.write(found, ()))
    assert np.array_equal(file["head.weight_quantized"], found.codes["head.weight"][0])
    assert np.array_equal(file["head.weight_scale"], found.codes["head.weight"][1])


@pytest.mark.parametrize(("losses", "changed"), [((0.2, 0.1), True), ((0.1, 0.2), False), ((0.1, 0.1), False)])
def test_it_is_kept_only_where_fewer_answers_change(
    losses: tuple[float, float], changed: bool, plain: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(losses)
    monkeypatch.setattr(Answers, "expected_loss", lambda *_: next(told))
    before, after = both(plain)
    assert (after is not before) == changed


@pytest.mark.usefixtures("kept")
def test_operators_that_only_the_runtime_knows_leave_weights_as_they_are(plain: ModelProto, tmp_path: Path) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(plain)
    strange.graph.node[0].output[0] = "before"
    strange.graph.node.insert(1, onnx.helper.make_node("Sinh", ["before"], [plain.graph.node[0].output[0]], "sinh"))
    before, after = both(strange)
    assert after is before
    skipped = {skip.layer: skip.reason for skip in quantize.apply(strange, PLAIN, {}, CONTEXT).skipped}
    assert "rounded to nearest" in skipped["compensate"]
    assert "Sinh" in skipped["compensate"]
