"""Read a zip of class folders (`cat/1.png`, or `train/cat/1.png` and `test/cat/2.png`) that may be damaged or hostile.

Nothing is extracted: entries are decoded in memory, one at a time, under caps on their number, bytes and pixels. Only
five common picture formats are tried, first frame only. A picture that cannot be read is named and nothing is kept.
"""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.engine.data import Images
from core.engine.formats.npz_reader import MAX_BYTES, MAX_CLASSES, Found
from core.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
MAX_ENTRIES = 50_000
MAX_ENTRY_BYTES = 64 * 1024**2
MAX_RATIO = 200  # unpacked over packed bytes of one entry: no photograph comes near
MAX_PIXELS = 25_000_000
DEFAULT_SIDE = 64  # when the pictures differ in size and most are larger than LARGEST_KEPT
LARGEST_KEPT = 224
POOL_FOLDERS = frozenset({"train", "training", "val", "valid", "validation"})
TEST_FOLDERS = frozenset({"test", "testing"})
BROKEN = (
    OSError, EOFError, ValueError, TypeError, SyntaxError, RuntimeError, NotImplementedError, OverflowError,
    MemoryError, KeyError, IndexError, AttributeError, struct.error, zlib.error, zipfile.BadZipFile,
    Image.DecompressionBombError,
)  # fmt: skip  # what the standard library and Pillow raise on bytes that are not what they say


@dataclass(frozen=True)
class _Entry:
    info: zipfile.ZipInfo
    test: bool
    label: str | None  # the class folder; None directly under the root


def read_zip(path: Path, size: tuple[int, int] | None = None) -> Found:
    """Pictures of the zip at `path`, all resized to `size` (height, width), or to the size that most of them have.

    Raises DataError that names the entry and what is accepted.
    """
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise DataError(
            f"{path.name} cannot be read as a zip ({error}); accepted is a zip of class folders."
        ) from error
    with archive:
        entries = _entries(archive, path.name)
        classes = _classes(entries, path.name)
        sizes, modes = zip(*(_look(archive, e.info) for e in entries), strict=True)
        height, width = size or _common(sizes)
        channels = 1 if all(mode in ("1", "L", "LA") or mode.startswith("I") for mode in modes) else 3
        if len(entries) * height * width * channels > MAX_BYTES:
            raise DataError(
                f"{path.name} holds {len(entries)} pictures, {len(entries) * height * width * channels / 1e9:.1f} GB "
                f"at {height}×{width}; accepted are up to {MAX_BYTES / 1e9:.1f} GB."
            )
        x = np.empty((len(entries), height, width, channels), np.uint8)
        for row, entry in zip(x, entries, strict=True):
            row[:] = _decode(archive, entry.info, (height, width), channels)
    number = {name: i for i, name in enumerate(classes)}
    y = np.array([number[e.label] for e in entries if e.label is not None], np.int64) if classes else None
    images, held = Images(x, y), np.array([e.test for e in entries])
    if not held.any() or held.all():
        return Found(images, None, classes)
    return Found(images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held)), classes)


def _entries(archive: zipfile.ZipFile, name: str) -> list[_Entry]:
    """The pictures among the entries, in order of their names, with their part and class folder."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise DataError(f"{name} has {len(infos)} entries; accepted are up to {MAX_ENTRIES}.")
    files = [info for info in infos if not info.filename.endswith("/")]  # is_dir() fails on an empty name
    found = [(info, PurePosixPath(info.filename.replace("\\", "/")).parts) for info in files]
    found = [(info, parts) for info, parts in found if parts and _is_picture(parts)]
    if not found:
        raise DataError(f"{name} holds no pictures; accepted are {', '.join(sorted(SUFFIXES))} in class folders.")
    for info, _ in found:
        if info.file_size > MAX_ENTRY_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1024):
            raise DataError(
                f"{_shown(info)} unpacks from {info.compress_size} to {info.file_size} bytes; accepted are up to "
                f"{MAX_ENTRY_BYTES // 1024**2} MB and {MAX_RATIO} times the packed size."
            )
    total = sum(info.file_size for info, _ in found)
    if total > MAX_BYTES:
        raise DataError(f"{name} unpacks to {total / 1e9:.1f} GB; accepted are up to {MAX_BYTES / 1e9:.1f} GB.")
    found.sort(key=lambda pair: pair[0].filename)
    infos, paths = [info for info, _ in found], _without_common_folder([parts for _, parts in found])
    in_parts = all(len(parts) > 1 and parts[0].lower() in POOL_FOLDERS | TEST_FOLDERS for parts in paths)
    return [_entry(info, parts, in_parts) for info, parts in zip(infos, paths, strict=True)]


def _is_picture(parts: tuple[str, ...]) -> bool:
    """Whether this is a picture and not a leftover: hidden files, `..`, macOS's resource forks."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


def _without_common_folder(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop the folders that every picture is in: one class alone is no class."""
    while all(len(parts) > 1 and parts[0] == paths[0][0] for parts in paths):
        paths = [parts[1:] for parts in paths]
    return paths


def _entry(info: zipfile.ZipInfo, parts: tuple[str, ...], in_parts: bool) -> _Entry:
    """`in_parts`: the first folder says train or test, the second is the class."""
    test = in_parts and parts[0].lower() in TEST_FOLDERS
    parts = parts[1:] if in_parts else parts
    return _Entry(info, test, parts[0][:80] if len(parts) > 1 else None)


def _classes(entries: list[_Entry], name: str) -> tuple[str, ...]:
    """Class folders in order of their names, or () when no picture is in one."""
    labels = {e.label for e in entries if e.label is not None}
    loose = next((e for e in entries if e.label is None), None)
    if labels and loose:
        raise DataError(
            f"{_shown(loose.info)} of {name} is in no class folder, but others are; accepted are all or none."
        )
    if len(labels) > MAX_CLASSES:
        raise DataError(f"{name} has {len(labels)} class folders; accepted are up to {MAX_CLASSES}.")
    return tuple(sorted(labels))


def _look(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, int], str]:
    """(height, width) and Pillow's mode, from the header alone."""
    with _opened(archive, info) as picture:
        return (picture.height, picture.width), picture.mode


def _decode(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """One picture as (h, w, channels) uint8, squeezed to `size` with an antialiasing bilinear filter."""
    height, width = size
    try:
        with _opened(archive, info) as picture:
            if picture.mode.startswith("I"):  # 16 bits of grey; convert would cut them off at 255
                picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            elif "transparency" in picture.info:
                picture = picture.convert("RGBA")
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture, np.uint8).reshape(height, width, channels)
    except BROKEN as error:
        raise _broken(info, error) from error


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes that are refused below
            picture = Image.open(BytesIO(archive.read(info)), formats=FORMATS)
    except BROKEN as error:
        raise _broken(info, error) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{_shown(info)} has {picture.width}×{picture.height} pixels; accepted are up to {MAX_PIXELS / 1e6:.0f} "
            "million."
        )
    return picture


def _broken(info: zipfile.ZipInfo, error: BaseException) -> DataError:
    return DataError(
        f"{_shown(info)} cannot be read as a picture ({type(error).__name__}); accepted are {', '.join(FORMATS)}."
    )


def _shown(info: zipfile.ZipInfo) -> str:
    return repr(info.filename[-80:])


def _common(sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size that most pictures have, unless it is large."""
    size = Counter(sizes).most_common(1)[0][0]
    return size if max(size) <= LARGEST_KEPT else (DEFAULT_SIDE, DEFAULT_SIDE)
