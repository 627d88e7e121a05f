"""The training loop: schedules by hand, augmentation against a naive one, the best epoch kept, a killed run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.cards import ModelCard
from core.engine import train, training_state
from core.engine.batches import batches, draw_moves, move
from core.engine.data import Images
from core.engine.schedule import Epoch, Plan, is_over, rate_at
from core.engine.train import accuracy, fit, seed_all
from core.engine.training_state import State
from core.errors import Cancelled, DataError

CARD = ModelCard("tiny", "Tiny", (1, 8, 8), ("dark", "bright"), mean=(0.5,), std=(0.25,))
PLAN = Plan(epochs=4, learning_rate=0.05, batch_size=32, shift=1)


def images(count: int, seed: int) -> Images:
    """Class 1 is brighter on average; noise makes it a task."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(110 + 30 * y[:, None, None, None], 60, (count, 8, 8, 1)).clip(0, 255).astype(np.uint8)
    return Images(x, y)


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([v.flatten().double() for v in module.state_dict().values()])


def test_schedules_by_hand() -> None:
    cosine = Plan(learning_rate=0.2)
    assert [rate_at(p, cosine) for p in (0, 0.5, 1)] == pytest.approx([0.2, 0.1, 0.0])
    once = replace(cosine, schedule="onecycle")
    assert [rate_at(p, once) for p in (0, 0.125, 0.25, 0.625, 1)] == pytest.approx([0.02, 0.11, 0.2, 0.1, 0.0])


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5) + 1
    padded = nn.functional.pad(x, [2] * 4)
    seen = set()
    for seed in range(20):
        plan = Plan(shift=2, flip=True)
        moved = move(x, draw_moves(2, plan, torch.Generator().manual_seed(seed)), plan)
        for n in range(2):
            views = {
                (i, j, flip): padded[n, :, i : i + 5, j : j + 5].flip(2) if flip else padded[n, :, i : i + 5, j : j + 5]
                for i in range(5) for j in range(5) for flip in (False, True)
            }  # fmt: skip
            match = [key for key, view in views.items() if torch.equal(view, moved[n])]
            assert len(match) == 1
            seen.add(match[0])
    assert len(seen) > 20, "shifts and mirrors vary"
    still = Plan(shift=0)
    assert torch.equal(move(x, draw_moves(2, still, torch.Generator()), still), x)


def test_training_learns_and_repeats() -> None:
    first, second = tiny(), tiny()
    curve = fit(first, images(512, 0), images(256, 1), CARD, PLAN)
    assert fit(second, images(512, 0), images(256, 1), CARD, PLAN) == curve
    assert torch.equal(weights(first), weights(second))
    assert curve[-1].loss < curve[0].loss
    assert accuracy(first, images(256, 2), CARD) > 0.9
    assert not first.training


def test_the_best_epoch_is_kept() -> None:
    module = tiny()
    kept: list[torch.Tensor] = []

    def spoil_late_epochs(current: nn.Module, progress: float) -> None:
        if len(kept) >= 16:  # 8 updates an epoch: from the third epoch on
            nn.init.zeros_(current[5].weight)  # type: ignore[index]
        kept.append(weights(current).clone())

    curve = fit(module, images(256, 0), images(128, 1), CARD, PLAN, after_step=spoil_late_epochs)
    best = max(range(4), key=lambda i: (curve[i].accuracy, i))
    assert best < 2
    assert torch.equal(weights(module), kept[best * 8 + 7])
    assert accuracy(module, images(128, 1), CARD) == curve[best].accuracy


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    plan = replace(PLAN, averaging=0.9)
    whole, killed, resumed = tiny(), tiny(), tiny()
    curve = fit(whole, images(256, 0), images(128, 1), CARD, plan)

    def stop(fraction: float, message: str, **_: float) -> None:
        if fraction > 0.6:
            raise Cancelled("stopped by the test")

    path = tmp_path / "state.pt"
    with pytest.raises(Cancelled):
        fit(killed, images(256, 0), images(128, 1), CARD, plan, report=stop, checkpoint=path)
    done: list[float] = []
    again = fit(
        resumed, images(256, 0), images(128, 1), CARD, plan, checkpoint=path, report=lambda f, *_, **__: done.append(f)
    )
    assert min(done) > 0.5, "finished epochs are not trained again"
    assert again == curve
    assert torch.equal(weights(whole), weights(resumed))


def dropping() -> nn.Sequential:
    """Dropout draws from the global generator, and an average of the weights is kept beside them."""
    return nn.Sequential(*list(tiny())[:5], nn.Dropout(0.3), *list(tiny())[5:])


def test_a_run_killed_within_an_epoch_goes_on_from_there_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_state, "EVERY", 0.0)  # a checkpoint after every update
    plan, path = replace(PLAN, averaging=0.9, flip=True), tmp_path / "state.pt"
    seen: list[float] = []

    def run(module: nn.Module, limit: float, checkpoint: Path | None) -> list[Epoch]:
        seed_all(0)

        def report(fraction: float, message: str, **_: float) -> None:
            seen.append(fraction)
            if fraction > limit:
                raise Cancelled("stopped by the test")

        return fit(module, images(250, 0), images(128, 1), CARD, plan, report=report, checkpoint=checkpoint)

    whole, resumed = dropping(), dropping()
    curve = run(whole, 1.0, None)
    with pytest.raises(Cancelled):
        run(dropping(), 0.4, path)  # after 13 of 32 updates: 5 into the second epoch
    killed_at = seen[-1]
    seen.clear()
    assert run(resumed, 1.0, path) == curve
    assert seen[0] > killed_at, "finished updates are not done again"
    assert torch.equal(weights(whole), weights(resumed))


def test_numbers_of_the_curve_are_reported_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PACE", 0.0)
    found: list[dict[str, float]] = []
    curve = fit(
        tiny(), images(64, 0), images(64, 1), CARD, replace(PLAN, epochs=2), report=lambda _, __, **n: found.append(n)
    )
    ends = [row for row in found if "validation_accuracy" in row]
    assert ends == [{"loss": row.loss, "validation_accuracy": row.accuracy} for row in curve]
    assert [set(row) for row in found] == [{"loss"}, {"loss"}, {"loss", "validation_accuracy"}] * 2
    assert found[1]["loss"] == pytest.approx(curve[0].loss)


def test_training_ends_when_patience_does() -> None:
    def rows(*scores: float) -> list[Epoch]:
        return [Epoch(i + 1, 0.0, score) for i, score in enumerate(scores)]

    plan = Plan(epochs=9, patience=2)
    assert not is_over([], plan)
    assert not is_over(rows(0.5, 0.4), plan)
    assert is_over(rows(0.5, 0.4, 0.45), plan)
    assert not is_over(rows(0.5, 0.4, 0.5), plan), "as good is as good as better"
    assert not is_over(rows(0.9, *[0.1] * 7), replace(plan, patience=0))
    assert is_over(rows(*[0.1 * i for i in range(9)]), plan)


def test_a_training_that_gets_worse_is_left_early() -> None:
    done: list[int] = []

    def spoil_late_epochs(current: nn.Module, progress: float) -> None:
        done.append(1)
        if len(done) > 16:  # 8 updates an epoch: from the third epoch on
            nn.init.zeros_(current[5].weight)  # type: ignore[index]

    plan = replace(PLAN, epochs=20, patience=2)
    curve = fit(tiny(), images(256, 0), images(128, 1), CARD, plan, after_step=spoil_late_epochs)
    best = max(range(len(curve)), key=lambda i: curve[i].accuracy)
    assert best < 2
    assert len(curve) == best + 3


def test_stored_views_come_back_and_differ_from_each_other() -> None:
    data, plan = images(50, 0), replace(PLAN, views=2, shift=2, flip=True, batch_size=16)

    def versions(epoch: int) -> torch.Tensor:
        found = list(batches(data, CARD, plan, epoch))
        assert {batch.view for batch in found} == {epoch % 2}
        return torch.cat([b.x for b in found])[torch.cat([b.index for b in found]).argsort()]

    first, second, third = map(versions, range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    orders = [torch.cat([b.index for b in batches(data, CARD, plan, epoch)]) for epoch in (0, 2)]
    assert not torch.equal(*orders), "the order is another one in every epoch"


def test_labels_are_needed() -> None:
    bare = Images(images(64, 0).x, None)
    with pytest.raises(DataError, match="needs labels"):
        fit(tiny(), bare, bare, CARD, PLAN)
    with pytest.raises(DataError, match="needs labels"):
        accuracy(tiny(), bare, CARD)


@pytest.mark.parametrize(("clip", "moved"), [(0.0, 5.0), (0.1, 0.1), (9.0, 5.0)])
def test_gradients_are_clipped_together(clip: float, moved: float) -> None:
    """Gradients (3, 4) have norm 5: one step of plain descent at rate 1 moves the weights by it, or by the clip."""
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    plan = Plan(epochs=1, learning_rate=1.0, batch_size=1, momentum=0.9, weight_decay=0.0, shift=0, clip=clip)

    def loss(forward: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (module.weight * torch.tensor([[3.0, 4.0]])).sum()

    state = State(module, plan, None)
    state.update(loss(module, before, before), None)
    # Nesterov's first step is (1 + momentum) times the gradient
    assert float((module.weight.detach() - before).norm()) == pytest.approx(1.9 * moved, rel=1e-5)
