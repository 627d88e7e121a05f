"""The expected loss: by hand on a few logits, and against the truth where the change is noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from core.engine.data import Images
from core.engine.judge import (
    Unseen,
    counted_loss,
    counted_losses,
    expected_loss,
    expected_losses,
    margins,
    remembered,
    standard_error,
    unseen_changes,
    unseen_loss,
    unseen_losses,
)


def test_margins_are_against_the_best_of_the_others() -> None:
    logits = np.array([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]], np.float32)
    np.testing.assert_allclose(margins(logits, np.array([0, 2])), [0.5, -3.0])


def test_expected_loss_by_hand() -> None:
    """The smaller margins, twice 1, move by 2 and 0: a = 1 and s = 1. How far the larger ones move does not count."""
    before = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0]], np.float32)
    after = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], np.float32)
    assert expected_loss(before, after, None) == pytest.approx((norm.cdf(-2) + norm.cdf(-4)) / 2)
    assert counted_loss(before, after, None) == 0.25


def test_labels_set_what_is_won_against_what_is_lost() -> None:
    """Two images whose margins 2 and -1 move by -1 and 1: all of them are asked, as the smaller is alone. s = 1."""
    before = np.array([[2.0, 0.0], [1.0, 0.0]], np.float32)
    after = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    y = np.array([0, 1])
    assert expected_loss(before, after, y) == pytest.approx(0.5 - (norm.cdf(2) + norm.cdf(-1)) / 2)


def test_the_standard_error_by_hand() -> None:
    """Of four images one is lost and one is won: values 1, -1, 0, 0 around their mean 0."""
    y = np.array([0, 1, 0, 0])
    before = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    after = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    assert counted_losses(before, after, y).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert standard_error(counted_losses(before, after, y)) == pytest.approx(np.sqrt(2 / 4) / 2)
    each = expected_losses(before, after, y)
    assert each.mean() == pytest.approx(expected_loss(before, after, y))


def test_nothing_moved_nothing_lost() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    assert expected_loss(logits, logits, None) == 0.0
    assert expected_loss(logits, logits, np.zeros(20, np.int64)) == 0.0


@pytest.mark.parametrize("labelled", [False, True])
def test_few_images_tell_more_than_a_count_of_them(labelled: bool) -> None:
    """The true loss of 60,000 noisy answers is known; on 80 of them the expectation is near, and scatters less."""
    rng = np.random.default_rng(0)
    before = (rng.standard_normal((60_000, 4)) * 3).astype(np.float32)
    y = np.where(rng.random(60_000) < 0.9, before.argmax(1), rng.integers(0, 4, 60_000)) if labelled else None
    after = before + rng.standard_normal(before.shape).astype(np.float32) * np.float32(0.3)
    truth = counted_loss(before, after, y)
    draws = [rng.choice(60_000, 80, replace=False) for _ in range(300)]
    found = {
        judge: np.array([judge(before[i], after[i], None if y is None else y[i]) for i in draws])
        for judge in (expected_loss, counted_loss)
    }
    assert found[expected_loss].mean() == pytest.approx(truth, rel=0.15, abs=0.001)
    assert found[expected_loss].std() < 0.75 * found[counted_loss].std()


def test_what_unseen_images_are_worth_by_hand() -> None:
    """Right, wrong with a right runner-up, and wrong with a wrong one."""
    logits = np.array([[5.0, 3.0, 0.0], [5.0, 3.0, 0.0], [5.0, 3.0, 0.0]], np.float32)
    unseen = Unseen.of(logits, np.array([0, 1, 2]))
    assert unseen.margins.tolist() == [2.0, 2.0, 2.0]
    assert unseen.worth.tolist() == [1.0, -1.0, 0.0]
    before = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0]], np.float32)
    after = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], np.float32)  # a = 1 and s = 1, as above
    np.testing.assert_allclose(unseen_changes(before, after, unseen), norm.cdf(-3))
    np.testing.assert_allclose(unseen_losses(before, after, unseen), norm.cdf(-3) * unseen.worth)
    assert not unseen_losses(before, before, unseen).any()
    # one of four right answers was counted to go; of unseen ones a third are right, and a third can be won
    found = unseen_loss(before, after, before.argmax(1), unseen)
    assert found == pytest.approx(0.25 / 3 - norm.cdf(-3) / 3)


def test_images_known_by_heart_do_not_hide_what_others_lose() -> None:
    """The original is right on all images that are looked at, and far ahead there; the change is the same noise."""
    rng = np.random.default_rng(0)
    fresh, y = (rng.standard_normal((20_000, 4)) * 3).astype(np.float32), rng.integers(0, 4, 20_000)
    fresh[np.arange(20_000), y] += 4
    known = fresh[:2000].copy()
    known[np.arange(2000), y[:2000]] += 8
    changed = [x + rng.standard_normal(x.shape).astype(np.float32) for x in (fresh, known)]
    truth = counted_loss(fresh, changed[0], y)
    assert unseen_losses(known, changed[1], Unseen.of(fresh, y)).mean() == pytest.approx(truth, rel=0.15)
    assert expected_loss(known, changed[1], y[:2000]) < 0.5 * truth


@pytest.mark.parametrize(("right_here", "count", "known"), [(1.0, 400, True), (0.93, 400, False), (0.95, 100, False)])
def test_images_are_known_by_heart_where_many_more_are_right(right_here: float, count: int, known: bool) -> None:
    """Of unseen images 90 % are right. 93 % of 400 may be luck (1.3 % each), and so may 95 % of 100 (2.2 %)."""
    y = np.zeros(1000, np.int64)
    unseen = Unseen(np.ones(1000), np.where(np.arange(1000) < 900, 1.0, 0.0))
    before = np.zeros((count, 2), np.float32)
    before[np.arange(count), (np.arange(count) >= right_here * count).astype(int)] = 1
    assert remembered(before, y[:count], unseen) is known
    assert not remembered(before, None, unseen)
    assert not remembered(before, y[:count], None)


def test_few_or_unlabelled_images_tell_nothing(tmp_path: Path) -> None:
    logits = np.zeros((1000, 4), np.float32)
    np.savez(tmp_path / "answers.npz", logits=logits)
    x, y = np.zeros((1000, 1, 1, 3), np.uint8), np.zeros(1000, np.int64)
    assert Unseen.read(tmp_path / "answers.npz", Images(x, y)) is not None
    assert Unseen.read(tmp_path / "answers.npz", Images(x, None)) is None
    assert Unseen.read(tmp_path / "answers.npz", Images(x[:999], y[:999])) is None
    assert Unseen.read(tmp_path / "none.npz", Images(x, y)) is None
