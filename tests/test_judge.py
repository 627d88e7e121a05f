"""The expected loss: by hand on a few logits, and against the truth where the change is noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy.stats import norm

from core.engine.data import Images
from core.engine.judge import (
    Move,
    Unseen,
    counted_loss,
    counted_losses,
    expected_loss,
    expected_losses,
    margins,
    remembered,
    standard_error,
    unseen_changes,
    unseen_losses,
)

Logits = NDArray[np.float32]


def test_margins_are_against_the_best_of_the_others() -> None:
    logits = np.array([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]], np.float32)
    np.testing.assert_allclose(margins(logits, np.array([0, 2])), [0.5, -3.0])


def pair(margins_before: list[float], moves: list[float]) -> tuple[Logits, Logits]:
    """Logits (n, 2) whose first class is ahead by these margins, before and after."""
    before = np.array([[m, 0.0] for m in margins_before], np.float32)
    return before, before + np.array([[m, 0.0] for m in moves], np.float32)


def test_expected_loss_by_hand() -> None:
    """Margins 1 and 3 both move by -1 on average and by 1 more or less."""
    before, after = pair([1, 1, 3, 3], [0, -2, 0, -2])
    assert expected_loss(before, after, None) == pytest.approx((norm.cdf(0) + norm.cdf(-2)) / 2, abs=1e-6)
    assert counted_loss(before, after, None) == 0.25


def test_sure_answers_move_further_by_hand() -> None:
    """Margins 1 and 2 move by 1 and 2 more or less: each is as likely to be lost."""
    before, after = pair([1, 1, 2, 2], [1, -1, 2, -2])
    move = Move.of(np.array([1.0, 1, 2, 2]), np.array([2.0, 0, 4, 0]))
    assert (move.shift, move.slope, move.floor, move.share) == pytest.approx((0, 0, 0, 1), abs=1e-6)
    assert expected_loss(before, after, None) == pytest.approx(norm.cdf(-1), abs=1e-6)


def test_what_becomes_of_sure_answers_decides_nothing() -> None:
    """Margins up to 8 move by 4 more or less, the many above by 1, which taken for all would lose too little."""
    rng = np.random.default_rng(0)
    old = rng.uniform(0, 40, 5000)
    spread = np.where(old < 8, 4.0, 1.0)
    before, after = pair(old.tolist(), (spread * rng.standard_normal(5000)).tolist())
    assert expected_loss(before, after, None) == pytest.approx(norm.cdf(-old / spread).mean(), rel=0.1)
    assert Move.of(old, margins(after, before.argmax(1))).floor == pytest.approx(16, rel=0.3)


def test_labels_set_what_is_won_against_what_is_lost() -> None:
    """Margins 2 and -2 are halved, and 1 more or less: as many wrong ones are won as right ones are lost."""
    before, after = pair([2, 2, -2, -2], [0, -2, 0, 2])
    y = np.zeros(4, np.int64)
    each = [norm.cdf(-1)] * 2 + [-norm.cdf(-1)] * 2
    np.testing.assert_allclose(expected_losses(before, after, y), each, atol=1e-6)
    assert expected_loss(before, after, y) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_handful_of_images_is_counted(images: int) -> None:
    """A line goes through them, so that nothing is left to chance."""
    before, after = pair([1.0, 2.0, 3.0][:images], [-2.0, -1.0, 0.0][:images])
    assert expected_loss(before, after, None) == pytest.approx(counted_loss(before, after, None), abs=1e-6)


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=2), elements=st.floats(-50, 50, width=32)),
    st.integers(0, 9),
)
def test_an_expected_loss_is_a_share(before: Logits, seed: int) -> None:
    after = before + np.random.default_rng(seed).standard_normal(before.shape).astype(np.float32)
    for y in (None, np.zeros(len(before), np.int64)):
        assert -1 <= expected_loss(before, after, y) <= 1


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
    before, after = pair([1, 1, 3, 3], [0, -2, 0, -2])  # as above: a margin of 2 goes to 1 ± 1
    np.testing.assert_allclose(unseen_changes(before, after, unseen), norm.cdf(-1), atol=1e-6)
    np.testing.assert_allclose(unseen_losses(before, after, unseen), norm.cdf(-1) * unseen.worth, atol=1e-6)
    assert not unseen_losses(before, before, unseen).any()


def test_images_known_by_heart_do_not_hide_what_others_lose() -> None:
    """The original is right on all images that are looked at, and far ahead there; the change is the same noise."""
    rng = np.random.default_rng(0)
    fresh, y = (rng.standard_normal((20_000, 4)) * 3).astype(np.float32), rng.integers(0, 4, 20_000)
    fresh[np.arange(20_000), y] += 4
    known = fresh[:2000].copy()
    known[np.arange(2000), y[:2000]] += 8
    changed = [x + rng.standard_normal(x.shape).astype(np.float32) for x in (fresh, known)]
    truth = counted_loss(fresh, changed[0], y)
    assert unseen_losses(known, changed[1], Unseen.of(fresh, y)).mean() == pytest.approx(truth, rel=0.2)
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
