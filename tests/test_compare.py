"""Paired comparison: counts by hand, the p-value against SciPy's binomial test, pictures against NumPy's own reader."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from core import compare, pictures
from core.candidate import Latency, Scores, Share
from core.errors import DataError


def one_hot(*classes: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[list(classes)]


def test_answers_that_changed_were_lost_and_won() -> None:
    found = compare.answers(one_hot(0, 1, 2, 0, 1), one_hot(0, 2, 1, 0, 0), np.array([0, 1, 1, 2, 2]))
    assert found.changed.tolist() == [1, 2, 4]
    assert found.lost.tolist() == [1]
    assert found.won.tolist() == [2]  # image 4 changed from wrong to wrong
    assert found.p_value == 1.0


def test_without_labels_nothing_is_right() -> None:
    found = compare.answers(one_hot(0, 1), one_hot(1, 1), None)
    assert (found.changed.tolist(), found.lost.tolist(), found.p_value) == ([0], [], None)


def test_other_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"same images; received 1, 2"):
        compare.answers(one_hot(0, 1), one_hot(1), None)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 0), (7, 7), (3, 12), (40, 22), (310, 251), (4000, 3800)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    exact = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert compare.mcnemar(lost, won) == pytest.approx(exact, rel=1e-9)


def scores(size: int, *speeds: tuple[float, float, float]) -> Scores:
    rows = tuple(Latency(1, n + 1, 1.0, 1.0, middle, low, high, 9) for n, (low, middle, high) in enumerate(speeds))
    return Scores(None, Share(1, 1, 1, 9), size, 1, 1, 1, rows)


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ([(1.4, 1.5, 1.6), (1.1, 1.2, 1.3)], "Faster in every setting measured, 1.20 to 1.50 times."),
        ([(0.9, 1.1, 1.3), (0.95, 1.0, 1.1)], "Smaller but not faster: the differences are within the spread"),
        ([(0.6, 0.7, 0.8), (0.9, 1.0, 1.1)], "Smaller but slower with batch 1, 1 thread."),
        ([(1.1, 1.2, 1.3), (0.6, 0.7, 0.8)], "Faster with batch 1, 1 thread, but slower with batch 1, 2 threads."),
        ([(1.1, 1.2, 1.3), (0.9, 1.0, 1.1)], "Faster with batch 1, 1 thread, elsewhere no more than the spread"),
        ([], "Latency was not measured."),
    ],
)
def test_speed_is_told_as_it_is(speeds: list[tuple[float, float, float]], said: str) -> None:
    assert compare.speed_sentence(scores(50, *speeds), scores(100)).startswith(said)


def test_larger_and_slower_is_not_called_smaller() -> None:
    assert compare.speed_sentence(scores(200, (0.6, 0.7, 0.8)), scores(100)) == "Slower with batch 1, 1 thread."


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_come_out_one_by_one(tmp_path: Path, save) -> None:  # type: ignore[no-untyped-def]
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3), np.uint8)
    save(tmp_path / "data.npz", test_x=images, test_y=np.arange(50))
    rows = pictures.read_rows(tmp_path / "data.npz", "test_x", [7, 49, 0, 7])
    assert np.array_equal(rows, images[[7, 49, 0, 7]])
    labels = pictures.read_labels(tmp_path / "data.npz", "test_y")
    assert labels is not None
    assert labels[49] == 49
    assert pictures.read_labels(tmp_path / "data.npz", "val_y") is None
    with pytest.raises(DataError, match=r"holds no 'val_x'; it has test_x.npy"):
        pictures.read_rows(tmp_path / "data.npz", "val_x", [0])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_enlarged_in_whole_pixels(channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 6, channels), np.uint8)
    shown = np.asarray(Image.open(BytesIO(pictures.png(pixels, side=40))))
    assert shown.shape[:2] == (40, 30)
    assert np.array_equal(shown.reshape(40, 30, channels)[::5, ::5], pixels)
