"""Scores: intervals against SciPy, shares by hand, errors of layers where the right answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from core.candidate import Share
from core.cards import ModelCard
from core.compare import read_logits
from core.engine import evaluate
from core.engine.data import Images, to_input
from core.engine.formats import onnx_writer
from core.errors import ModelError
from tests.tiny import CARD, tiny_data, tiny_model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "tiny.onnx"
    onnx_writer.export(tiny_model().module, CARD, path)
    return path


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (1, 1), (917, 1000), (9173, 10000), (3, 40)])
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    found = evaluate.share(np.arange(count) < hits)
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert found.value == hits / count
    assert found.count == count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_images_no_knowledge() -> None:
    assert evaluate.share(np.zeros(0, bool)) == Share(0.0, 0.0, 1.0, 0)


def test_predictions_are_the_networks_for_every_image(file: Path) -> None:
    images = tiny_data().test
    odd = images.take(np.arange(len(images) - 3))  # not a multiple of the batch
    with torch.no_grad():
        expected = tiny_model().module(torch.from_numpy(to_input(odd.x, CARD))).numpy()
    np.testing.assert_allclose(evaluate.predict(file, odd, CARD), expected, atol=1e-4)


def test_scores_by_hand(file: Path) -> None:
    """Six images: the file is right on three, agrees with the original on four; class 3 has no image."""
    images = Images(np.zeros((6, 12, 12, 3), np.uint8), np.array([0, 0, 1, 1, 2, 2]))
    answers, original = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 0, 3]], np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 2, 2]]
    scores = evaluate.score(file, answers, original, images, CARD, ())
    assert scores.accuracy is not None
    assert (scores.accuracy.value, scores.agreement.value) == (3 / 6, 4 / 6)
    assert [(s.value, s.count) for s in scores.per_class] == [(0.5, 2), (1.0, 2), (0.0, 2), (0.0, 0)]
    assert scores.size_bytes == file.stat().st_size
    # 16·27 + 16, 2 × (16·144 + 16), 24·144 + 24, 24·4 + 4 weights and biases, BatchNorm folded
    assert scores.params == 448 + 2 * 2320 + 3480 + 100
    # 144 places × 432, 2 × 144 × 2304, 36 × 3456, 96
    assert scores.macs == 62_208 + 663_552 + 124_416 + 96


def test_without_labels_there_is_agreement_and_no_accuracy(file: Path) -> None:
    images = Images(np.zeros((2, 12, 12, 3), np.uint8), None)
    scores = evaluate.score(file, np.eye(4)[:2], np.eye(4)[:2], images, CARD, ())  # type: ignore[arg-type]
    assert (scores.accuracy, scores.per_class, scores.agreement.value) == (None, (), 1.0)


def test_answers_per_position_agree_by_their_share(file: Path) -> None:
    """Two images of 2 × 2 positions; one of eight positions differs."""
    maps = np.zeros((2, 4, 2, 2), np.float32)
    maps[:, 1] = 1
    other = maps.copy()
    other[0, 2, 0, 0] = 2
    images = Images(np.zeros((2, 12, 12, 3), np.uint8), None)
    assert evaluate.score(file, other, maps, images, CARD, ()).agreement.value == 7 / 8


def test_another_shape_is_refused(file: Path) -> None:
    images = Images(np.zeros((2, 12, 12, 3), np.uint8), None)
    with pytest.raises(ModelError, match=r"shape \(2, 3\); the original's is \(2, 4\)"):
        evaluate.score(file, np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), images, CARD, ())


def test_numbers_that_are_not_finite_are_refused(file: Path) -> None:
    hot = replace(CARD, std=(1e-38, 1e-38, 1e-38))  # the input overflows
    with pytest.raises(ModelError, match="not finite"), np.errstate(over="ignore", invalid="ignore"):
        evaluate.predict(file, tiny_data().test.take(slice(0, 4)), hot)


def test_saved_predictions_are_those_that_pages_read(tmp_path: Path) -> None:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    evaluate.save_predictions(tmp_path / "p.npz", logits)
    np.testing.assert_array_equal(read_logits(tmp_path / "p.npz"), logits)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


LINEAR = ModelCard("linear", "Linear", (3, 12, 12), ("a", "b"))


class Plain(nn.Module):
    """Two convolutions without anything between them, so that errors can be worked out."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, nn.Conv2d(4, 2, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).flatten(1)


def plain(scale: float = 1.0) -> Plain:
    torch.manual_seed(0)
    net = Plain(nn.Conv2d(3, 4, 1, bias=False)).eval()
    with torch.no_grad():
        net.first.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return net


def errors(first: nn.Module, second: nn.Module, folder: Path) -> dict[str, float]:
    for name, module in (("a", first), ("b", second)):
        onnx_writer.export(module, LINEAR, folder / f"{name}.onnx")
    return evaluate.layer_error(folder / "a.onnx", folder / "b.onnx", tiny_data().calibration, LINEAR)


def test_layers_scaled_by_a_quarter_are_wrong_by_a_quarter(tmp_path: Path) -> None:
    assert errors(plain(), plain(), tmp_path) == {"first": 0.0, "second": 0.0}
    assert errors(plain(), plain(1.25), tmp_path) == pytest.approx({"first": 0.25, "second": 0.25}, rel=1e-5)


def test_a_split_layer_is_compared_at_its_last_part(tmp_path: Path) -> None:
    whole = plain()
    weight = whole.first.weight[:, :, 0, 0]  # type: ignore[union-attr, index]
    parts = [nn.Conv2d(3, 3, 1, bias=False) for _ in range(11)] + [nn.Conv2d(3, 4, 1, bias=False)]
    with torch.no_grad():
        for part in parts[:-1]:
            part.weight.copy_(torch.eye(3)[:, :, None, None])
        parts[-1].weight.copy_(weight[:, :, None, None])
    split = plain()
    split.first = nn.Sequential(*parts)  # twelve parts: the last is 11, not 9
    assert errors(whole, split, tmp_path)["first"] == pytest.approx(0.0, abs=1e-6)


def test_a_layer_of_another_width_cannot_be_compared(tmp_path: Path) -> None:
    narrow = Plain(nn.Conv2d(3, 2, 1, bias=False)).eval()
    narrow.second = nn.Conv2d(2, 2, 12, bias=False)
    assert list(errors(plain(), narrow, tmp_path)) == ["second"]


def test_an_uploaded_file_is_matched_by_the_names_its_nodes_stand_for(file: Path, tmp_path: Path) -> None:
    proto = onnx.load(file)
    for node in proto.graph.node:
        node.name = f"/{'/'.join(node.name.split('.'))}/{node.op_type}"
    onnx.save(proto, tmp_path / "theirs.onnx")
    found = evaluate.layer_error(tmp_path / "theirs.onnx", file, tiny_data().calibration, CARD)
    assert found == dict.fromkeys(("stem", "block.0", "block.2", "down", "head"), 0.0)


def test_channels_that_were_scaled_up_are_scaled_back() -> None:
    """Three times and five times as large: as before. A tenth larger is an error, and so is a channel of other sign."""
    there = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    factors = np.array([3.0, 5.0, 1.1, -1.0])[:, None, None]
    expected = there * np.array([1.0, 1.0, 1.1, -1.0])[:, None, None]
    np.testing.assert_allclose(evaluate.scaled_back(there, there * factors), expected)
