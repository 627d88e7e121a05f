"""The images that tier 1 looks at, and what each stands for."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from core.engine.telling import answers, chances, corrected, telling
from core.errors import Cancelled


def logits_of(margins: list[float]) -> torch.Tensor:
    """Two classes, so that an image with margin m is answered with odds exp(m)."""
    return torch.tensor([[margin, 0.0] for margin in margins])


def test_chances_by_hand() -> None:
    """Of sizes 1, 1, 2, 12 and three to draw, 12 is certain; of the others two: 2 is certain then, and 1 and 1 even."""
    assert chances(torch.tensor([1.0, 1.0, 2.0, 12.0]), 3).tolist() == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert chances(torch.tensor([1.0, 1.0, 1.0, 1.0]), 2).tolist() == pytest.approx([0.5] * 4)


def test_few_images_are_all_taken_alike() -> None:
    index, weight = telling(logits_of([0.0, 9.0, 1.0]), 5, 2.0)
    assert index.tolist() == [0, 1, 2]
    assert weight.tolist() == pytest.approx([1 / 3] * 3)


def test_doubted_images_are_drawn_and_sure_ones_stand_for_many() -> None:
    margins = [0.1 * i for i in range(10)] + [12.0] * 90
    index, weight = telling(logits_of(margins), 16, 1.0)
    sure = index >= 10
    assert (~sure).sum() == 10  # every doubted one
    assert weight[~sure].unique().numel() == 1
    assert float(weight[sure].min() / weight[~sure].max()) == pytest.approx(15.0, rel=1e-3)  # six stand for ninety


def test_the_weighted_mean_is_nearer_to_the_mean_of_all_than_that_of_images_as_they_come() -> None:
    """Of KL divergences from small changes of the logits, over many draws of images and changes."""
    errors: dict[str, list[float]] = {"telling": [], "as they come": []}
    for seed in range(40):
        made = torch.Generator().manual_seed(seed)
        logits = (
            torch.randn(400, 10, generator=made)
            * torch.linspace(0.5, 12, 400)[torch.randperm(400, generator=made), None]
        )
        moved = logits + 0.3 * torch.randn(400, 10, generator=made)
        p, q = logits.log_softmax(1), moved.log_softmax(1)
        kl = (p.exp() * (p - q)).sum(1)
        index, weight = telling(logits, 32, 1.0)
        errors["telling"].append(float(weight @ kl[index] / kl.mean()) - 1)
        errors["as they come"].append(float(kl[:32].mean() / kl.mean()) - 1)
    spread = {name: float(torch.tensor(found).square().mean().sqrt()) for name, found in errors.items()}
    assert spread["telling"] < 0.7 * spread["as they come"]
    assert abs(float(torch.tensor(errors["telling"]).mean())) < 0.1  # without bias


def test_what_is_foreseen_of_more_images_corrects_the_mean_of_few() -> None:
    """Seen is 3 · foreseen + 1: the mean of all follows exactly; what would more than halve or double it is cut."""
    foreseen, weight = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.5, 0.25, 0.25])
    seen = 3 * foreseen + 1  # 4, 7, 16; mean 7.75 where 2.25 is foreseen
    assert corrected(seen, weight, foreseen, 2.0) == pytest.approx(7.0)
    assert corrected(seen, weight, foreseen, 4.0) == pytest.approx(13.0)
    assert corrected(seen, weight, foreseen, 40.0) == pytest.approx(15.5)
    assert corrected(seen, weight, foreseen, 0.0) == pytest.approx(3.875)
    assert corrected(seen, weight, torch.zeros(3), 0.0) == pytest.approx(7.75)  # gradients foresee nothing


def test_who_waits_for_many_images_hears_of_it_and_can_stop() -> None:
    heard: list[str] = []

    def stop(_: float, message: str, **__: object) -> None:
        heard.append(message)
        raise Cancelled("stopped")

    net = torch.nn.Linear(4, 3)
    assert torch.equal(answers(net, torch.ones(64, 4), stop), net(torch.ones(64, 4)))
    with pytest.raises(Cancelled):
        answers(net, torch.ones(200, 4), stop)
    assert heard == ["Looking for the images that tell most: 64 of 200"]


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=60), st.integers(1, 70))
def test_any_logits(margins: list[float], count: int) -> None:
    index, weight = telling(logits_of(margins), count, 2.0)
    assert len(index) == len(weight) == min(count, len(margins))
    assert index.unique().tolist() == index.tolist()
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-5)
    assert bool((weight > 0).all())
