"""Bias correction: every channel of an integer layer has the mean that it has in float, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import runtime
from core.engine.calibrated import weight_bits
from core.engine.context import Context, silent
from core.engine.data import Images, to_input
from core.engine.formats import onnx_bias, onnx_facts, onnx_int8, onnx_writer
from core.engine.techniques import quantize
from core.options import Quantize

CARD = ModelCard("net", "net", (3, 16, 16), tuple("abcdefgh"), mean=(0.5,), std=(0.25,))
LAYERS = ("stem", "depth", "join", "head")


def images(count: int, seed: int) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8), None)


CONTEXT = Context(CARD, images(1, 0), images(64, 1), images(300, 3), False, None)
SEEN, FRESH = to_input(CONTEXT.calibration.x, CARD), to_input(images(200, 2).x, CARD)


class Net(nn.Module):
    """A depthwise layer whose weights lie half way between two codes, in a residual block. (n, 3, 16, 16) → (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.join, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        with torch.no_grad():
            self.depth.weight.copy_(torch.full_like(self.depth.weight, 20.49))
            self.depth.weight[:, 0, 0, 0] = 127  # one step is 1, so that every other weight loses 0.49

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.join(self.depth(x))).relu()
        return self.head(x.mean((2, 3), keepdim=True).flatten(1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx_writer.export(Net().eval(), CARD, path)
    return onnx.load(path)


@pytest.fixture(scope="module")
def integer(plain: ModelProto) -> ModelProto:
    return onnx_int8.write(onnx_int8.calibrate(plain, SEEN, "minmax", silent), (), bits=weight_bits(Quantize()))


def copied(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def means(model: ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in LAYERS}
    found = onnx_facts.run_for(model, list(outputs.values()), x)
    return {name: found[out].mean(tuple(a for a in range(found[out].ndim) if a != 1)) for name, out in outputs.items()}


def test_channels_have_the_means_of_the_float_file_within_a_step_of_the_bias(
    plain: ModelProto, integer: ModelProto
) -> None:
    corrected = copied(integer)
    assert onnx_bias.correct_biases(corrected, plain, SEEN, silent) == len(LAYERS)
    stored = {t.name: numpy_helper.to_array(t) for t in corrected.graph.initializer}
    makers = {out: node for node in corrected.graph.node for out in node.output}
    nodes = {node.name: node for node in corrected.graph.node}
    before, after, expected = means(integer, SEEN), means(corrected, SEEN), means(plain, SEEN)
    for name in LAYERS:
        step = stored[makers[nodes[name].input[2]].input[1]]
        assert (np.abs(after[name] - expected[name]) <= 0.5001 * step + 1e-5).all(), name
    assert np.abs(before["depth"] - expected["depth"]).max() > 1


def test_only_biases_change_and_they_stay_integers(plain: ModelProto, integer: ModelProto) -> None:
    corrected = copied(integer)
    onnx_bias.correct_biases(corrected, plain, SEEN, silent)
    assert corrected.graph.node == integer.graph.node
    for old, new in zip(integer.graph.initializer, corrected.graph.initializer, strict=True):
        assert (old.data_type, old.dims) == (new.data_type, new.dims)
        assert old == new or old.data_type == onnx.TensorProto.INT32


def test_other_images_are_answered_nearer_to_float(plain: ModelProto, integer: ModelProto) -> None:
    corrected = copied(integer)
    onnx_bias.correct_biases(corrected, plain, SEEN, silent)
    answers = [runtime.run(runtime.open_file(m.SerializeToString()), FRESH) for m in (plain, integer, corrected)]
    errors = [float(np.abs(found - answers[0]).mean()) for found in answers[1:]]
    assert errors[1] < 0.5 * errors[0]


def test_layers_in_float_keep_their_biases(plain: ModelProto) -> None:
    calibrated = onnx_int8.calibrate(plain, SEEN, "minmax", silent)
    mixed = onnx_int8.write(calibrated, ("stem", "join", "head"))
    corrected = copied(mixed)
    assert onnx_bias.correct_biases(corrected, plain, SEEN, silent) == 1
    changed = [
        old.name for old, new in zip(mixed.graph.initializer, corrected.graph.initializer, strict=True) if old != new
    ]
    assert changed == ["depth.bias_quantized"]


@pytest.mark.parametrize(("agreeing", "kept"), [((0, 1), True), ((1, 0), False), ((1, 1), False)])
def test_it_is_kept_only_where_integers_then_agree_more(
    agreeing: tuple[int, int], kept: bool, plain: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "first_integer_layer", lambda *_: 0)
    unchanged = quantize.apply(plain, Quantize(equalize=False, correct=False, compensate=False), {}, CONTEXT).model
    shares = iter(agreeing)
    monkeypatch.setattr(quantize.Answers, "expected_loss", lambda *_: 1 - next(shares))
    model = quantize.apply(plain, Quantize(equalize=False, compensate=False), {}, CONTEXT).model
    assert (model.SerializeToString(deterministic=True) != unchanged.SerializeToString(deterministic=True)) == kept
