"""Images and labels in four parts that never overlap: train, calibration, validation, test.

Techniques see the first three; only `evaluate` ever sees the test part. Splits are deterministic: the same file gives
the same parts and the same hash on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from core.cards import DataCard, ModelCard
from core.errors import DataError

CALIBRATION = 512  # images set aside for calibration; 256–512 suffice for quantization and sensitivity
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
# Few images without labels train nothing, so more of them repair, calibrate and judge: part → (share, at most).
UNLABELLED = {"test": (0.3, 100), "validation": (0.15, 100), "calibration": (0.3, 64)}


@dataclass(frozen=True)
class Images:
    """x (n, height, width, channels) uint8; y (n,) int64, or None without labels."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: NDArray[np.int64] | slice) -> Images:
        return Images(self.x[index], None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Data:
    """A card and its four parts."""

    card: DataCard
    train: Images = field(repr=False)
    calibration: Images = field(repr=False)
    validation: Images = field(repr=False)
    test: Images = field(repr=False)


def to_input(x: NDArray[np.uint8], card: ModelCard) -> NDArray[np.float32]:
    """Pixels (n, h, w, c) uint8 → the model's input (n, c, h, w) float32, `(x / 255 - mean) / std`."""
    mean = np.asarray(card.mean, np.float32)
    std = np.asarray(card.std, np.float32)
    scaled = (x.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def to_tensor(x: NDArray[np.uint8], card: ModelCard) -> torch.Tensor:
    """`to_input` as a torch tensor (n, c, h, w) float32."""
    return torch.from_numpy(to_input(x, card))


def split(pool: Images, test: Images | None, *, seed: int = 0) -> tuple[Images, Images, Images, Images]:
    """Cut `pool` (and keep `test` whole when it is given) into train, calibration, validation and test.

    Raises DataError when there are too few images for four parts.
    """
    count = len(pool)
    if count < 20:
        raise DataError(f"Too few images: received {count}, accepted are 20 or more, so that each part has some.")
    order = np.random.default_rng(seed).permutation(count)
    tests = 0 if test is not None else _size(pool, "test", TEST_SHARE)
    validations = _size(pool, "validation", VALIDATION_SHARE)
    calibrations = min(CALIBRATION, _size(pool, "calibration", VALIDATION_SHARE))
    cuts = np.cumsum([tests, validations, calibrations])
    held, validation, calibration, train = np.split(order, cuts)
    parts = [pool.take(np.sort(index)) for index in (train, calibration, validation)]
    return parts[0], parts[1], parts[2], pool.take(np.sort(held)) if test is None else test


def _size(pool: Images, part: str, share: float) -> int:
    """How many images a part gets: its share, and more of a small pool without labels."""
    more, most = UNLABELLED[part] if pool.y is None else (0.0, 0)
    return max(1, round(len(pool) * share), min(most, round(len(pool) * more)))


def hash_of(parts: tuple[Images, ...]) -> str:
    """SHA-256 over every pixel and label of every part, as 16 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part.x.shape).encode())
        digest.update(np.ascontiguousarray(part.x).data)
        if part.y is not None:
            digest.update(np.ascontiguousarray(part.y).data)
    return digest.hexdigest()[:16]


def make_data(name: str, pool: Images, test: Images | None, classes: tuple[str, ...], **about: str | bool) -> Data:
    """Split, hash and label a data set. `about` fills the remaining fields of the card."""
    parts = split(pool, test)
    height, width, channels = pool.x.shape[1:]
    train, calibration, validation, held = map(len, parts)
    about = {"title": name, **about}
    card = DataCard(
        name=name,
        shape=(channels, height, width),
        classes=classes,
        train=train,
        calibration=calibration,
        validation=validation,
        test=held,
        labelled=pool.y is not None,
        hash=hash_of(parts),
        **about,  # type: ignore[arg-type]
    )
    return Data(card, *parts)
