"""The shipped samples: cards, weights and pictures belong together, and each reaches the accuracy on its card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.cards import ModelCard
from core.engine import shapes
from core.engine.data import Images, make_data
from core.engine.data_sets import CIFAR10_CLASSES, open_data
from core.engine.train import accuracy
from core.errors import ModelError
from sample_models import SAMPLES, picture_file, train, weights_file
from sample_models.networks import NETWORKS, build
from tests.shared_data import shared


def cifar10_test_part() -> Images:
    """The four test sheets of 50 × 50 pictures of 32 × 32."""
    folder = shared("cifar10")
    x = []
    for path in sorted(folder.glob("test_*.webp")):
        with Image.open(path) as sheet:
            rows = np.asarray(sheet.convert("RGB")).reshape(50, 32, 50, 32, 3)
        x.append(rows.transpose(0, 2, 1, 3, 4).reshape(2500, 32, 32, 3))
    with np.load(folder / "labels.npz") as labels:
        return Images(np.concatenate(x), labels["y_test"].astype(np.int64))


TEST_PARTS = {
    "shapes_resnet20": lambda: Images(*shapes.make(2000, start=10_000)[:2]),
    "shapes_mobilenet": lambda: Images(*shapes.make(2000, start=10_000)[:2]),
    "digits_lenet": lambda: open_data({"kind": "digits"}).test,
    "cifar10_resnet20": cifar10_test_part,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_card_is_complete(name: str) -> None:
    card = SAMPLES[name]
    assert card.name == name
    assert all((card.title, card.source, card.licence, card.description, card.data))
    assert f"python -m sample_models.train {name}" in card.command
    assert len(card.classes) == 10
    assert len(card.mean) == len(card.std) == card.input_shape[0]
    assert picture_file(name).stat().st_size < 100_000
    with Image.open(picture_file(name)) as sheet:
        assert sheet.width > 600
    with torch.no_grad():
        assert build(name)(torch.zeros(2, *card.input_shape)).shape == (2, 10)


def test_every_network_that_has_a_card_has_weights_and_a_plan() -> None:
    assert {"shapes_resnet20", "digits_lenet"} <= set(SAMPLES) <= set(NETWORKS) == set(train.TRAININGS)
    assert all(weights_file(name).exists() for name in SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_reaches_the_accuracy_on_its_card(name: str) -> None:
    """On the whole test part, within 0.3 points: floating point differs between machines, the weights do not."""
    card = SAMPLES[name]
    assert accuracy(build(name), TEST_PARTS[name](), card) == pytest.approx(card.accuracy, abs=0.003)


def test_published_accuracies() -> None:
    """What the gallery promises: shapes is neither trivial nor out of reach, CIFAR-10 is a real ResNet-20's."""
    assert 0.90 <= SAMPLES["shapes_resnet20"].accuracy <= 0.97  # type: ignore[operator]
    assert SAMPLES["digits_lenet"].accuracy > 0.97  # type: ignore[operator]
    if "cifar10_resnet20" in SAMPLES:
        assert SAMPLES["cifar10_resnet20"].accuracy >= 0.91  # type: ignore[operator]
        assert SAMPLES["cifar10_resnet20"].classes == CIFAR10_CLASSES


def test_unknown_sample() -> None:
    with pytest.raises(ModelError, match=r"There is no sample model '\.\./secret'; accepted are .*digits_lenet"):
        build("../secret")


def test_gallery_imports_no_torch() -> None:
    code = "import sys, sample_models; assert sample_models.SAMPLES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_training_is_the_same_every_time_and_after_a_stop(tmp_path: Path) -> None:
    """Two epochs at once, or one epoch, a stop and the second: the same weights to the last bit."""
    pool = open_data({"kind": "digits"}).train
    data = make_data("digits", pool.take(slice(0, 200)), pool.take(slice(200, 240)), tuple("0123456789"))
    whole = train.train("digits_lenet", data, epochs=2, compiled=False).state_dict()
    again = train.train("digits_lenet", data, epochs=2, compiled=False).state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)

    checkpoint = tmp_path / "half.checkpoint"

    class Stopped(Exception):
        pass

    def stop(module: torch.nn.Module, *_: object) -> None:
        if checkpoint.with_suffix(".1").exists():
            raise Stopped

    handle = torch.nn.modules.module.register_module_forward_hook(stop)
    with pytest.raises(Stopped):
        train.train("digits_lenet", data, epochs=2, checkpoint=checkpoint, compiled=False)
    handle.remove()
    resumed = train.train("digits_lenet", data, epochs=2, checkpoint=checkpoint, compiled=False).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_write_sample_measures_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sample_models.FOLDER", tmp_path)
    data = open_data({"kind": "digits"})
    torch.manual_seed(0)
    module = NETWORKS["digits_lenet"]()
    card = train.write_sample("digits_lenet", module, data)
    assert card.accuracy == accuracy(module, data.test, card)
    assert card.accuracy < 0.3  # type: ignore[operator]  # never trained: near one in ten
    assert ModelCard.from_json(card.to_json()) == card
    same = build("digits_lenet").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in module.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"digits_lenet.{x}" for x in ("json", "png", "safetensors")
    ]
