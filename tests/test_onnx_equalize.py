"""Equalization: the same network with more even channels, through joins and depthwise layers, never past a sum."""

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
from core.engine.context import Context
from core.engine.data import Images, to_input
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_equalize import LARGEST, equalize
from core.engine.techniques import quantize
from core.options import Quantize

CARD = ModelCard("net", "net", (3, 16, 16), tuple("abcdefgh"), mean=(0.5,), std=(0.25,))
LAYERS = ("stem", "depth", "left", "right", "join", "last")


def images(count: int, seed: int) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8), None)


X = to_input(images(64, 2).x, CARD)
CONTEXT = Context(CARD, images(1, 0), images(64, 1), images(300, 3), False, None)


class Net(nn.Module):
    """Channels of very different sizes, through a depthwise layer, a join and, at the end, a sum. (n, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.join, self.last = nn.Conv2d(10, 8, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            for layer in (self.stem, self.depth, self.left, self.right, self.join):
                sizes = torch.logspace(-2, 0, len(layer.weight))
                layer.weight *= sizes[:, None, None, None]
                layer.bias *= sizes  # type: ignore[operator]
            self.depth.weight /= torch.logspace(-2, 0, 8)[:, None, None, None]
            self.join.weight /= torch.cat([torch.logspace(-2, 0, 4), torch.logspace(-2, 0, 6)])[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.stem(x).relu()).relu()
        x = torch.cat([self.left(x).relu(), nn.functional.max_pool2d(self.right(x).relu(), 3, 1, 1)], 1)
        x = self.join(x)
        return (x + self.last(x.relu())).mean((2, 3))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx_writer.export(Net().eval(), CARD, path)
    return onnx.load(path)


def copied(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def answers(model: ModelProto) -> np.ndarray:
    return runtime.run(runtime.open_file(model.SerializeToString()), X)


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_the_answers_stay_and_only_what_may_be_scaled_is(plain: ModelProto) -> None:
    even = copied(plain)
    assert equalize(even, X, LAYERS) == 4  # all but `join`, whose values go into a sum, and `last`
    np.testing.assert_allclose(answers(even), answers(plain), rtol=1e-4, atol=1e-5)
    before, after = weights(plain), weights(even)
    changed = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"stem", "depth", "left", "right", "join"}
    assert np.array_equal(before["join.bias"], after["join.bias"])


def test_a_channel_grows_by_what_it_lacks_of_two_thirds_of_the_largest(plain: ModelProto) -> None:
    even = copied(plain)
    equalize(even, X, ("left", "join"))
    x = torch.from_numpy(X)
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        ranges = net.left(net.depth(net.stem(x).relu()).relu()).relu().amax((0, 2, 3)).numpy()
    expected = np.clip(2 / 3 * ranges.max() / np.maximum(ranges, 1e-9), 1, LARGEST)
    assert expected.max() > 1
    found = weights(even)["left.weight"] / weights(plain)["left.weight"]
    np.testing.assert_allclose(found[:, 0, 0, 0], expected, rtol=1e-4)
    assert np.array_equal(weights(even)["stem.weight"], weights(plain)["stem.weight"])


def test_a_layer_that_must_stay_is_neither_scaled_nor_made_up_for(plain: ModelProto) -> None:
    even = copied(plain)
    assert equalize(even, X, set(LAYERS) - {"join"}) == 2  # `left` and `right` are read by `join`
    assert np.array_equal(weights(even)["join.weight"], weights(plain)["join.weight"])


def test_integers_lose_less_of_even_channels(plain: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "first_integer_layer", lambda *_: 0)
    even = copied(plain)
    equalize(even, to_input(CONTEXT.calibration.x, CARD), LAYERS)
    made = [quantize.apply(source, Quantize(equalize=False), {}, CONTEXT).model for source in (plain, even)]
    errors = [float(np.abs(answers(model) - answers(plain)).mean()) for model in made]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(("agreeing", "kept"), [((0, 1), True), ((1, 0), False), ((1, 1), False)])
def test_it_is_kept_only_where_integers_then_agree_more(
    agreeing: tuple[int, int], kept: bool, plain: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "first_integer_layer", lambda *_: 0)
    unchanged = quantize.apply(plain, Quantize(equalize=False, correct=False, compensate=False), {}, CONTEXT).model
    shares = iter(agreeing)
    monkeypatch.setattr(quantize.Answers, "expected_loss", lambda *_: 1 - next(shares))
    model = quantize.apply(plain, Quantize(correct=False, compensate=False), {}, CONTEXT).model
    assert (model.SerializeToString(deterministic=True) != unchanged.SerializeToString(deterministic=True)) == kept
