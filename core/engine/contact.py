"""A sheet of test pictures, the same number of each class side by side: what the data looks like at one glance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.cards import DataCard
from core.engine.data import Images

COLUMNS, ROWS = 10, 4
CELL = 64  # pixels a picture takes
GAP = 2


def contact_sheet(images: Images, card: DataCard) -> Image.Image:
    """Up to 40 pictures of `images`, all classes in turn, as one palette image (about 60 kB as PNG)."""
    chosen = _choose(images)
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * (CELL + GAP) - GAP, rows * (CELL + GAP) - GAP))
    for place, i in enumerate(chosen):
        sheet.paste(_cell(images.x[i]), (place % COLUMNS * (CELL + GAP), place // COLUMNS * (CELL + GAP)))
    return sheet.quantize(255, method=Image.Quantize.FASTOCTREE)


def _choose(images: Images) -> list[int]:
    """Indices: the first picture of each class, then the second of each, … so that columns are classes."""
    if images.y is None:
        return list(range(min(len(images), COLUMNS * ROWS)))
    order = np.argsort(images.y, kind="stable")
    _, starts = np.unique(images.y[order], return_index=True)
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))  # place within its class
    in_turn = order[np.lexsort((images.y[order], ranks))]
    return [int(i) for i in in_turn[: COLUMNS * ROWS]]


def _cell(pixels: NDArray[np.uint8]) -> Image.Image:
    """Whole pixels enlarged, large pictures reduced, both to fit CELL × CELL."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGBA")
    scale = CELL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
