"""Open a data set by name or from a file, save it in a folder, and fit it to a model's input.

A source is {"kind": "shapes"}, {"kind": "digits"}, {"kind": "cifar10", "path": a local .npz or nothing to download} or
{"kind": "file", "path": .npz or .zip, and optionally "name", "size": [height, width], "flip"}.
Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, for CIFAR-10.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.cards import DataCard, ModelCard
from core.engine import shapes
from core.engine.contact import contact_sheet
from core.engine.data import Data, Images, hash_of, make_data
from core.engine.formats.npz_reader import MAX_BYTES, Found, read_npz
from core.engine.formats.zip_reader import read_zip
from core.errors import DataError
from core.workspace import default_root, write_json

PARTS = ("train", "calibration", "validation", "test")
SHAPES_POOL, SHAPES_TEST = 10_000, 2_000
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10 = {
    "title": "CIFAR-10",
    "flip": True,
    "source": "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
    "licence": "none stated; cite Krizhevsky 2009",
    "description": "60,000 small photographs of ten kinds of animals and vehicles.",
}


def open_data(source: Mapping[str, Any]) -> Data:
    """The data set that `source` names, split. Raises DataError that says what is accepted."""
    kinds: dict[str, Callable[[Mapping[str, Any]], Data]] = {
        "shapes": _shapes,
        "digits": _digits,
        "cifar10": _cifar10,
        "file": _file,
    }
    kind = str(source.get("kind", "file"))
    if kind not in kinds:
        raise DataError(f"There is no data set {kind!r}; accepted are {', '.join(kinds)}.")
    return kinds[kind](source)


def _shapes(source: Mapping[str, Any]) -> Data:
    x, y, _, _ = shapes.make(SHAPES_POOL + SHAPES_TEST)
    return make_data(
        "shapes",
        Images(x[:SHAPES_POOL], y[:SHAPES_POOL]),
        Images(x[SHAPES_POOL:], y[SHAPES_POOL:]),
        shapes.CLASSES,
        title="Shapes",
        flip=True,
        source="drawn by this project, core/engine/shapes.py, seed 0",
        licence="public domain (CC0-1.0)",
        description="12,000 pictures of ten shapes in random pose and colour, on textured ground with clutter.",
    )


def _digits(source: Mapping[str, Any]) -> Data:
    from sklearn.datasets import load_digits  # a second to import, and only here

    digits = load_digits()
    x = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)  # 0..16 dots per cell
    return make_data(
        "digits",
        Images(x, digits.target.astype(np.int64)),
        None,
        tuple("0123456789"),
        title="Digits",
        source="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; shipped with scikit-learn",
        licence="CC BY 4.0",
        description="1,797 real handwritten digits, 8×8 grey.",
    )


def _cifar10(source: Mapping[str, Any]) -> Data:
    if source.get("path"):
        return _file({**source, "name": "cifar10"})
    pool, test = (_torchvision_part(default_root() / "downloads", train) for train in (True, False))
    return make_data("cifar10", pool, test, CIFAR10_CLASSES, **CIFAR10)  # type: ignore[arg-type]


def _torchvision_part(root: Path, train: bool) -> Images:
    from torchvision.datasets import CIFAR10 as Cifar10  # two seconds to import, and only here

    root.mkdir(parents=True, exist_ok=True)
    try:
        part = Cifar10(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # no network, a closed door, or bytes that fail their checksum
        raise DataError(
            f"CIFAR-10 could not be downloaded ({error}); give a local .npz with x_train, y_train, x_test and y_test."
        ) from error
    return Images(np.asarray(part.data, np.uint8), np.asarray(part.targets, np.int64))


def _file(source: Mapping[str, Any]) -> Data:
    path = Path(str(source.get("path", "")))
    if not path.is_file():
        raise DataError(f"There is no file {path.name!r}; accepted are .npz files and zips of class folders.")
    found, copies = without_copies(_read(path, source.get("size")))
    about: dict[str, Any] = {"title": path.name, "flip": bool(source.get("flip", False)), "source": path.name}
    if found.classes == CIFAR10_CLASSES and found.pool.x.shape[1:] == (32, 32, 3):
        about = CIFAR10
    elif copies:
        about["description"] = f"{copies} exact copies were left out, so that no picture is in two parts."
    return make_data(str(source.get("name") or path.stem), found.pool, found.test, found.classes, **about)


def _read(path: Path, size: Any) -> Found:
    """By content, never by suffix: an .npz is a zip that holds .npy files."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = any(name.endswith(".npy") for name in archive.namelist()[:1000])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path.name} is neither an .npz nor a zip ({error}); accepted are .npz files and zips of class folders."
        ) from error
    if arrays:
        return read_npz(path)
    return read_zip(path, (int(size[0]), int(size[1])) if size else None)


def without_copies(found: Found) -> tuple[Found, int]:
    """Drop pool images that occur earlier in the pool or anywhere in the test part; returns how many were dropped."""
    seen = set() if found.test is None else {image.tobytes() for image in found.test.x}
    kept: list[int] = []
    for i, image in enumerate(found.pool.x):
        key = image.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(i)
    copies = len(found.pool) - len(kept)
    return Found(found.pool.take(np.array(kept, np.int64)), found.test, found.classes), copies


def save_data(data: Data, folder: Path) -> None:
    """Write data.npz, contact.png and, last, card.json: a folder without its card does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {}
    for part in PARTS:
        images: Images = getattr(data, part)
        arrays[f"{part}_x"] = images.x
        if images.y is not None:
            arrays[f"{part}_y"] = images.y
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    contact_sheet(data.test, data.card).save(folder / "contact.png", optimize=True)
    write_json(folder / "card.json", data.card.to_json())


def load_data(folder: Path) -> Data:
    """What `save_data` wrote. Raises DataError when it is not there or not whole."""
    try:
        card = DataCard.from_json(json.loads((folder / "card.json").read_text(encoding="utf-8")))
        with (folder / "data.npz").open("rb") as file, np.load(file, allow_pickle=False) as saved:
            parts = [Images(saved[f"{part}_x"], saved.get(f"{part}_y")) for part in PARTS]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"The data set {folder.name} cannot be opened ({error}); open its source again.") from error
    return Data(card, *parts)


def fit_to(data: Data, model: ModelCard) -> Data:
    """`data` with the size, channels and label numbers that `model` takes; `data` itself when they agree already.

    Pictures are squeezed with an antialiasing bilinear filter, grey is repeated or colour turned to grey, and labels
    are renumbered when the class names are the model's in another order. Raises DataError where that cannot be.
    """
    labels = _renumbering(data.card, model)
    channels, height, width = model.input_shape
    if data.card.shape == tuple(model.input_shape) and labels is None:
        return data
    if channels not in (1, 3) or data.card.shape[0] not in (1, 3):
        raise DataError(
            f"The model takes {channels} channels, the pictures have {data.card.shape[0]}; accepted are 1 and 3."
        )
    parts = [getattr(data, part) for part in PARTS]
    size = sum(map(len, parts)) * channels * height * width
    if size > MAX_BYTES:
        raise DataError(
            f"The pictures would take {size / 1e9:.1f} GB at the model's {height}×{width}; accepted are up to "
            f"{MAX_BYTES / 1e9:.1f} GB: give fewer pictures."
        )
    fitted = tuple(
        Images(
            _resized(part.x, (channels, height, width)), part.y if labels is None or part.y is None else labels[part.y]
        )
        for part in parts
    )
    classes = data.card.classes if labels is None else model.classes
    card = data.card.with_(shape=(channels, height, width), classes=classes, hash=hash_of(fitted))
    return Data(card, *fitted)


def _renumbering(data: DataCard, model: ModelCard) -> NDArray[np.int64] | None:
    """The model's number of each class of `data`, or None when the numbers already agree."""
    if not data.labelled or not model.classes or data.classes == model.classes:
        return None
    if set(data.classes) <= set(model.classes):
        return np.array([model.classes.index(name) for name in data.classes], np.int64)
    if len(data.classes) != len(model.classes):
        raise DataError(
            f"The data has {len(data.classes)} classes, the model answers with {len(model.classes)}; "
            "accepted is the same number, or class names that are among the model's."
        )
    return None


def _resized(x: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(n, h, w, c) → (n, height, width, channels) for `shape` (channels, height, width)."""
    channels, height, width = shape
    if x.shape[1:] == (height, width, channels):
        return x
    fitted = np.empty((len(x), height, width, channels), np.uint8)
    for row, pixels in zip(fitted, x, strict=True):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
        row[:] = np.asarray(picture).reshape(height, width, channels)
    return fitted
