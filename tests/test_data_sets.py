"""Data sets by name and from files, saved and opened again, fitted to a model; parts share no picture."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.cards import ModelCard
from core.engine import data_sets
from core.engine.contact import CELL, COLUMNS, GAP, contact_sheet
from core.engine.data import Data, Images, hash_of, make_data
from core.engine.data_sets import PARTS, fit_to, load_data, open_data, save_data
from core.errors import DataError
from tests.shared_data import shared
from tests.test_zip_reader import class_folders, zipped


def random_images(count: int, shape: tuple[int, int, int] = (6, 8, 3), classes: int = 4, seed: int = 0) -> Images:
    x = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Images(x, np.arange(count) % classes)


def tiny(shape: tuple[int, int, int] = (6, 8, 3), classes: tuple[str, ...] = ("a", "b", "c", "d")) -> Data:
    return make_data("tiny", random_images(60, shape, len(classes)), random_images(12, shape, len(classes), 1), classes)


def model_of(input_shape: tuple[int, int, int], classes: tuple[str, ...] = ("a", "b", "c", "d")) -> ModelCard:
    return ModelCard("m", "m", input_shape, classes)


def assert_parts_share_nothing(data: Data) -> None:
    keys = [{picture.tobytes() for picture in getattr(data, part).x} for part in PARTS]
    assert len(set().union(*keys)) == sum(map(len, keys))
    assert [getattr(data.card, part) for part in PARTS] == [len(getattr(data, part)) for part in PARTS]


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (data_sets.SHAPES_POOL, data_sets.SHAPES_TEST) == (10_000, 2_000)
    monkeypatch.setattr(data_sets, "SHAPES_POOL", 100)
    monkeypatch.setattr(data_sets, "SHAPES_TEST", 40)
    data = open_data({"kind": "shapes"})
    assert_parts_share_nothing(data)
    assert data.card.shape == (3, 32, 32)
    assert data.card.flip
    np.testing.assert_array_equal(np.bincount(data.test.y), [4] * 10)  # type: ignore[arg-type]


def test_digits() -> None:
    data = open_data({"kind": "digits"})
    assert_parts_share_nothing(data)
    assert data.card.hash == "6de846a73518e8eb"
    assert sum(len(getattr(data, part)) for part in PARTS) == 1797
    assert data.card.shape == (1, 8, 8)
    assert not data.card.flip
    assert {0, 255} <= set(np.unique(data.test.x).tolist())


def cifar_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """A `cifar-10-batches-py` of ten pictures per batch, whose checksums torchvision is told to expect."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    folder = root / "downloads" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    x, y = random_images(60, (32, 32, 3), 10).x, np.arange(60) % 10
    for number, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        rows = slice(number * 10, number * 10 + 10)
        batch = {"data": x[rows].transpose(0, 3, 1, 2).reshape(10, 3072), "labels": y[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list(data_sets.CIFAR10_CLASSES)}))
    for names in ("train_list", "test_list"):
        pairs = [[name, calculate_md5(folder / name)] for name, _ in getattr(CIFAR10, names)]
        monkeypatch.setattr(CIFAR10, names, pairs)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": calculate_md5(folder / CIFAR10.meta["filename"])})
    return x, y


def test_cifar10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cifar_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    data = open_data({"kind": "cifar10"})
    np.testing.assert_array_equal(data.test.x, x[50:])
    np.testing.assert_array_equal(data.test.y, y[50:])
    assert data.card.classes == data_sets.CIFAR10_CLASSES
    np.savez(
        tmp_path / "local.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:], classes=data.card.classes
    )
    for kind in ("cifar10", "file"):  # recognized by its classes and shape
        assert open_data({"kind": kind, "path": tmp_path / "local.npz", "name": "cifar10"}).card == data.card


def test_cifar10_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import cifar

    def closed(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(cifar, "download_and_extract_archive", closed)
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"could not be downloaded \(Network is unreachable\); give a local \.npz"):
        open_data({"kind": "cifar10"})


def test_copies_end_in_one_part(tmp_path: Path) -> None:
    """30 pictures, five of them twice and three of them also in the test part: 22 are left to split."""
    images = random_images(30)
    pool = np.concatenate([images.x, images.x[:5]])
    y = np.arange(35) % 3
    np.savez(tmp_path / "twice.npz", x_train=pool, y_train=y, x_test=images.x[-3:], y_test=y[:3])
    data = open_data({"kind": "file", "path": tmp_path / "twice.npz"})
    assert_parts_share_nothing(data)
    assert data.card.train + data.card.calibration + data.card.validation == 27
    assert data.card.description.startswith("8 exact copies")
    assert data.card.name == "twice"


def test_medical_images_have_copies() -> None:
    data = open_data({"kind": "file", "path": shared("pneumonia_mnist.npz")})
    keys = [{picture.tobytes() for picture in getattr(data, part).x} for part in PARTS]
    assert not any(keys[i] & keys[j] for i in range(4) for j in range(i))


def test_zip_is_known_by_its_content(tmp_path: Path) -> None:
    path = zipped(tmp_path, class_folders(40)).rename(tmp_path / "pets.npz")
    data = open_data({"kind": "file", "path": str(path), "size": [5, 4], "flip": True})
    assert data.card.shape == (3, 5, 4)
    assert data.card.classes == ("ant", "cat")
    assert data.card.flip


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"kind": "imagenet"}, "There is no data set 'imagenet'; accepted are shapes, digits, cifar10, file"),
        ({"kind": "file", "path": "nowhere.npz"}, r"There is no file 'nowhere\.npz'; accepted are"),
        ({"kind": "file"}, "There is no file ''; accepted are"),
    ],
)
def test_sources_that_are_not(source: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_data(source)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match=r"photo\.jpg is neither an \.npz nor a zip"):
        open_data({"kind": "file", "path": path})


@pytest.mark.parametrize("labelled", [True, False])
def test_saved_data_opens_the_same(tmp_path: Path, labelled: bool) -> None:
    pool = random_images(60)
    data = make_data("tiny", pool if labelled else Images(pool.x, None), None, ("a", "b", "c", "d") if labelled else ())
    save_data(data, tmp_path / "d")
    again = load_data(tmp_path / "d")
    assert again.card == data.card
    assert hash_of((again.train, again.calibration, again.validation, again.test)) == data.card.hash
    assert (again.test.y is not None) == labelled
    with Image.open(tmp_path / "d" / "contact.png") as sheet:
        assert sheet.width == COLUMNS * (CELL + GAP) - GAP


def test_half_written_folder_does_not_exist(tmp_path: Path) -> None:
    save_data(tiny(), tmp_path / "d")
    content = (tmp_path / "d" / "data.npz").read_bytes()
    (tmp_path / "d" / "data.npz").write_bytes(content[:-100])
    with pytest.raises(DataError, match="The data set d cannot be opened"):
        load_data(tmp_path / "d")
    (tmp_path / "d" / "card.json").unlink()
    with pytest.raises(DataError, match=r"The data set d cannot be opened .*card\.json"):
        load_data(tmp_path / "d")


def test_contact_sheet_shows_every_class_in_turn() -> None:
    """30 classes of flat shade 8 × class, written in order: cells show shades 0, 8, … 232, then 0 again."""
    y = np.repeat(np.arange(30), 3)
    x = np.broadcast_to((y * 8).astype(np.uint8)[:, None, None, None], (90, 4, 4, 1))
    sheet = contact_sheet(Images(x, y), tiny().card).convert("L")
    step = CELL + GAP
    shades = [sheet.getpixel((i % COLUMNS * step + CELL // 2, i // COLUMNS * step + CELL // 2)) for i in range(40)]
    expected = [8 * (i % 30) for i in range(40)]
    assert np.abs(np.array(shades, float) - expected).max() <= 4  # a palette of 255 colours


def test_fit_to_leaves_what_fits() -> None:
    data = tiny()
    assert fit_to(data, model_of((3, 6, 8))) is data


def test_fit_to_channels_and_size() -> None:
    data = tiny((6, 8, 3))
    grey = fit_to(data, model_of((1, 6, 8)))
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(grey.test.x[..., 0], data.test.x @ weights, atol=1)
    colour = fit_to(grey, model_of((3, 12, 16)))
    assert colour.card.shape == (3, 12, 16)
    assert colour.card.hash not in (data.card.hash, grey.card.hash)
    np.testing.assert_array_equal(colour.train.x[..., 0], colour.train.x[..., 2])
    assert abs(float(colour.train.x.mean()) - float(grey.train.x.mean())) < 2
    np.testing.assert_array_equal(colour.test.y, data.test.y)


def test_fit_to_renumbers_by_name() -> None:
    """Folders come in order of their names, a model's classes in any order."""
    data = tiny(classes=("ant", "bee", "cat"))
    fitted = fit_to(data, model_of((3, 6, 8), ("dog", "cat", "bee", "ant")))
    assert data.test.y is not None
    np.testing.assert_array_equal(fitted.test.y, np.array([3, 2, 1])[data.test.y])
    assert fitted.card.classes == ("dog", "cat", "bee", "ant")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (model_of((3, 6, 8), ("x", "y")), "The data has 4 classes, the model answers with 2; accepted is"),
        (model_of((4, 6, 8)), "The model takes 4 channels, the pictures have 3; accepted are 1 and 3"),
        (model_of((3, 4000, 4000)), r"The pictures would take 3\.5 GB at the model's 4000×4000"),
    ],
)
def test_fit_to_refuses(model: ModelCard, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        fit_to(tiny(), model)


def test_zip_bytes_are_not_npz_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.zip"
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DataError, match=r"empty\.zip holds no pictures"):
        open_data({"kind": "file", "path": path})
