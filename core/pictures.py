"""Single images out of a data set's file, without reading the rest of it: the web process shows a few of many."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.errors import DataError


def read_rows(path: Path, name: str, index: Sequence[int]) -> NDArray[np.uint8]:
    """Rows `index` of array `name` in an .npz file, in the order asked for. Raises DataError when it is not there."""
    with ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise DataError(f"{path.name} holds no {name!r}; it has {', '.join(archive.namelist())}.")
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if fortran:
                raise DataError(f"{name} in {path.name} is stored column by column; it must be stored row by row.")
            start, size = file.tell(), int(np.prod(shape[1:])) * dtype.itemsize
            rows = {}
            for row in sorted({int(i) for i in index}):  # forward only: going back would unpack from the beginning
                file.seek(start + row * size)
                rows[row] = np.frombuffer(file.read(size), dtype).reshape(shape[1:])
    return np.array([rows[int(i)] for i in index], dtype).reshape(-1, *shape[1:])


def read_labels(path: Path, name: str) -> NDArray[np.int64] | None:
    """A whole array of labels, or None when the file has none."""
    with np.load(path) as arrays:
        return np.asarray(arrays[name], np.int64) if name in arrays.files else None


def png(pixels: NDArray[np.uint8], side: int = 128) -> bytes:
    """(height, width, 1 or 3) as PNG; small images are enlarged in whole pixels, so that nothing is blurred."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    times = max(1, side // max(image.size))
    out = BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(out, "png")
    return out.getvalue()
