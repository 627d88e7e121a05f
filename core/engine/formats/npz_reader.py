"""Read images and labels from a NumPy `.npz` that may be damaged or hostile.

Every array's header is read and checked before any of its bytes are, nothing is unpickled, and sizes are capped. Names
accepted: x and y; x_train, y_train, x_test and y_test; {train,val,test}_images and _labels (MedMNIST); with an optional
`classes`. The file format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from core.engine.data import Images
from core.errors import DataError

MAX_BYTES = 2 * 1024**3  # of all arrays together, unpacked
MAX_LABEL = 9_999
MAX_SIDE = 1024
MAX_CLASSES = 10_000
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, OSError, EOFError, ValueError, TypeError,
    SyntaxError, RuntimeError, NotImplementedError, OverflowError, MemoryError, KeyError, IndexError, AttributeError,
)  # fmt: skip  # what the standard library and NumPy raise on bytes that are not what they say
PARTS = {  # where the images and the labels of each part may be found
    "pool": (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels")),
    "more": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
ACCEPTED = "x and y; x_train, y_train, x_test and y_test; or train_images, train_labels, test_images and test_labels"

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """What a file holds: images to split, the file's own test part (or None), and the class names."""

    pool: Images
    test: Images | None
    classes: tuple[str, ...]


def read_npz(path: Path) -> Found:
    """Images and labels of the file at `path`. Raises DataError that names the array and what is accepted."""
    arrays = _load(path)
    parts = {part: _part(arrays, names) for part, names in PARTS.items()}
    if parts["pool"] is None:
        raise DataError(f"{path.name} holds {_listed(arrays)}; accepted are {ACCEPTED}.")
    pool, more, test = parts["pool"], parts["more"], parts["test"]
    for name, other in (("validation", more), ("test", test)):
        if other is not None and (other.x.shape[1:] != pool.x.shape[1:] or (other.y is None) != (pool.y is None)):
            raise DataError(f"The {name} images differ from the training images in size, channels or having labels.")
    if more is not None:  # the studio cuts its own validation part, from the pool
        labels = None if pool.y is None or more.y is None else np.concatenate([pool.y, more.y])
        pool = Images(np.concatenate([pool.x, more.x]), labels)
    return Found(pool, test, _classes(arrays.get("classes"), (pool, test)))


def _load(path: Path) -> dict[str, Array]:
    """The arrays that mean something here. Every header is checked before the first array is read."""
    wanted = {name for pairs in PARTS.values() for pair in pairs for name in pair} | {"classes"}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            known = {name: info for name, info in infos.items() if name in wanted}
            if not known:
                raise DataError(f"{path.name} holds {_listed(infos)}; accepted are {ACCEPTED}.")
            total = sum(_declared_bytes(archive, info) for info in known.values())
            if total > MAX_BYTES:
                raise DataError(
                    f"{path.name} unpacks to {total / 1e9:.1f} GB; accepted are up to {MAX_BYTES / 1e9:.1f} GB."
                )
            return {name: _read(archive, info) for name, info in known.items()}
    except DAMAGED as error:
        raise DataError(
            f"{path.name} cannot be read as .npz ({error or type(error).__name__}); "
            "accepted are files that numpy.savez wrote."
        ) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"array format {version} is not known")
    shape, _, dtype = read(file, max_header_size=10_000)
    return shape, dtype


def _declared_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that the array will take, by its header alone. Raises DataError for Python objects."""
    with archive.open(info) as file:
        shape, dtype = _header(file)
    if dtype.hasobject or dtype.kind not in "uifbUS":
        raise DataError(f"{info.filename} holds {dtype} values; accepted are numbers (and text in classes).")
    size = dtype.itemsize
    for side in shape:
        size *= side
    if size > info.file_size:
        raise DataError(
            f"{info.filename} says it has {size} bytes, but {info.file_size} are stored; accepted are whole files."
        )
    return max(size, info.file_size)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as file:
        array: Array = npy.read_array(file, allow_pickle=False, max_header_size=10_000)
        return array


def _part(arrays: dict[str, Array], names: tuple[tuple[str, str], ...]) -> Images | None:
    for images, labels in names:
        if images in arrays:
            x = _pixels(images, arrays[images])
            return Images(x, _labels(labels, arrays[labels], len(x)) if labels in arrays else None)
    return None


def _pixels(name: str, x: Array) -> NDArray[np.uint8]:
    """(n, h, w), (n, h, w, 1 or 3) or (n, 1 or 3, h, w), in 0..255 or 0..1 → (n, h, w, c) uint8."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[3] not in (1, 3) or not all(1 <= side <= MAX_SIDE for side in x.shape[1:3]):
        raise DataError(
            f"{name} has shape {x.shape}; accepted are (n, height, width) for grey, (n, height, width, 1 or 3) and "
            f"(n, 1 or 3, height, width), with sides of 1 to {MAX_SIDE} pixels."
        )
    if x.dtype == np.uint8 or not len(x):
        return np.ascontiguousarray(x, np.uint8)
    if x.dtype.kind not in "uifb":
        raise DataError(f"{name} holds {x.dtype} values; accepted are 0 to 255, or 0.0 to 1.0.")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 255):  # also false for NaN
        raise DataError(f"{name} has values from {low:g} to {high:g}; accepted are 0 to 255, or 0.0 to 1.0.")
    if (x.dtype.kind == "f" and high <= 1) or x.dtype.kind == "b":
        x = x * np.float32(255)
    return np.ascontiguousarray(np.rint(x) if x.dtype.kind == "f" else x, np.uint8)


def _labels(name: str, y: Array, count: int) -> NDArray[np.int64]:
    """(n,) or (n, 1) whole numbers from 0 to 9999 → (n,) int64."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise DataError(f"{name} is {y.dtype} of shape {y.shape}; accepted is one whole number per image.")
    if len(y) != count:
        raise DataError(f"{name} has {len(y)} labels for {count} images; accepted is one label per image.")
    if count and not 0 <= int(y.min()) <= int(y.max()) <= MAX_LABEL:
        raise DataError(f"{name} has labels from {y.min()} to {y.max()}; accepted are 0 to {MAX_LABEL}.")
    return y.astype(np.int64)


def _classes(names: Array | None, parts: tuple[Images | None, ...]) -> tuple[str, ...]:
    """The file's class names, or the numbers of the labels. Raises DataError when a label has no name."""
    labels = [part.y for part in parts if part is not None and part.y is not None and len(part)]
    needed = max((int(y.max()) + 1 for y in labels), default=0)
    if names is None:
        return tuple(map(str, range(needed)))
    if names.ndim != 1 or len(names) > MAX_CLASSES or names.dtype.kind not in "US":
        raise DataError(f"classes is {names.dtype} of shape {names.shape}; accepted is one text per class.")
    if len(names) < needed:
        raise DataError(f"classes has {len(names)} names, but the labels go up to {needed - 1}; accepted is one each.")
    texts = names.astype(str) if names.dtype.kind == "U" else np.char.decode(names, "utf-8", "replace")
    return tuple(str(text)[:80] for text in texts)


def _listed(names: Any) -> str:
    shown = [str(name)[:40] for name in list(names)[:8]]
    return ", ".join(shown) + (" and more" if len(names) > 8 else "") if shown else "no arrays"
