"""Splits that never overlap, hashes that see every pixel and label, pixels turned into the model's input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cards import ModelCard
from core.engine.data import Images, hash_of, make_data, split, to_input, to_tensor
from core.errors import DataError


def numbered(count: int, start: int = 0) -> Images:
    """`count` pictures of 2×2 whose content is their own number."""
    number = np.arange(start, start + count)
    x = np.stack([number % 256, number // 256, number * 0, number * 0], 1).astype(np.uint8)
    return Images(x.reshape(count, 2, 2, 1), (number % 10).astype(np.int64))


def contents(images: Images) -> list[bytes]:
    return [picture.tobytes() for picture in images.x]


@given(count=st.integers(20, 3000), own_test=st.booleans(), labelled=st.booleans())
@settings(max_examples=30)
def test_parts_never_overlap_and_lose_nothing(count: int, own_test: bool, labelled: bool) -> None:
    pool, test = numbered(count), numbered(30, start=60_000) if own_test else None
    pool = pool if labelled else Images(pool.x, None)
    parts = split(pool, test)
    everything = [key for part in parts for key in contents(part)]
    assert len(set(everything)) == len(everything) == count + (30 if own_test else 0)
    assert all(len(part) for part in parts)
    for part in parts if labelled else ():  # labels stay with their pictures
        number = part.x[:, 0, 0, 0].astype(int) + 256 * part.x[:, 0, 1, 0].astype(int)
        np.testing.assert_array_equal(part.y, number % 10)


def test_sizes_of_the_parts() -> None:
    """1000 pictures without a test part: 200 test, 100 validation, 100 calibration, the rest train."""
    assert list(map(len, split(numbered(1000), None))) == [600, 100, 100, 200]
    assert list(map(len, split(numbered(10_000), numbered(50)))) == [8488, 512, 1000, 50]


@pytest.mark.parametrize(
    ("count", "parts"),
    [(20, [5, 6, 3, 6]), (200, [50, 60, 30, 60]), (500, [261, 64, 75, 100]), (1000, [600, 100, 100, 200])],
)
def test_few_images_without_labels_are_not_left_to_training(count: int, parts: list[int]) -> None:
    assert list(map(len, split(Images(numbered(count).x, None), None))) == parts


def test_split_is_the_same_every_time() -> None:
    first, second = split(numbered(500), None), split(numbered(500), None)
    assert [contents(part) for part in first] == [contents(part) for part in second]


def test_too_few_pictures() -> None:
    with pytest.raises(DataError, match=r"Too few images: received 19, accepted are 20 or more"):
        split(numbered(19), None)


def test_hash_sees_every_pixel_and_label() -> None:
    images = numbered(30)
    before = hash_of((images,))
    assert hash_of((numbered(30),)) == before
    x, y = images.x.copy(), images.y.copy()  # type: ignore[union-attr]
    x[29, 1, 1, 0] += 1
    y[29] += 1
    hashes = {
        before,
        hash_of((Images(x, images.y),)),
        hash_of((Images(images.x, y),)),
        hash_of((Images(images.x, None),)),
    }
    assert len(hashes) == 4


def test_card_tells_what_is_in_the_parts() -> None:
    data = make_data("tiny", numbered(100), None, tuple("0123456789"), flip=True, title="Tiny")
    card = data.card
    assert (card.train, card.calibration, card.validation, card.test) == (60, 10, 10, 20)
    assert card.shape == (1, 2, 2)
    assert card.labelled
    assert card.flip
    assert card.title == "Tiny"
    assert not make_data("tiny", Images(numbered(30).x, None), None, ()).card.labelled


def test_input_is_normalized_per_channel() -> None:
    """Pixel 51 is 0.2: (0.2 - 0.1) / 0.5 = 0.2 in the first channel, (0.2 - 0.3) / 0.25 = -0.4 in the second."""
    card = ModelCard("m", "m", (2, 3, 4), (), mean=(0.1, 0.3), std=(0.5, 0.25))
    x = np.full((5, 3, 4, 2), 51, np.uint8)
    values = to_input(x, card)
    assert values.shape == (5, 2, 3, 4)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0], 0.2, atol=1e-6)
    np.testing.assert_allclose(values[:, 1], -0.4, atol=1e-6)
    np.testing.assert_array_equal(to_tensor(x, card).numpy(), values)
