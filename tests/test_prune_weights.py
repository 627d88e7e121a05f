"""prune_weights: scores worked out by hand and by a slow reference, exact shares, patterns, what is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import training_state
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.techniques import prune_weights
from core.engine.techniques.prune_weights import Growing, apply, beyond_pattern, lowest, score_lamp, score_magnitude
from core.engine.train import accuracy
from core.errors import Cancelled
from core.options import PruneWeights
from tests.tiny import CARD as TINY
from tests.tiny import tiny_context, tiny_data, tiny_model

NOTHING = Images(np.zeros((0, 8, 8, 3), np.uint8), None)
CONTEXT = Context(ModelCard("net", "net", (3, 8, 8), ("a", "b")), NOTHING, NOTHING, NOTHING, False, None)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.Flatten(),
        nn.Linear(576, 2),
    )


def zero_share(part: nn.Module) -> float:
    weight = part.weight
    assert isinstance(weight, Tensor)
    return float((weight == 0).double().mean())


def lamp_slowly(weight: Tensor) -> np.ndarray:
    """The paper's definition, one weight at a time."""
    values = [float(w) ** 2 for w in weight.double().flatten()]
    return np.array([v / sum(other for other in values if other >= v) for v in values]).reshape(weight.shape)


def test_lamp_by_hand() -> None:
    # squares 1, 4, 9, 16; sums from each upward 30, 29, 25, 16
    scores = score_lamp(torch.tensor([[2.0, -1.0], [4.0, 3.0]]))
    np.testing.assert_allclose(scores, [[4 / 29, 1 / 30], [1.0, 9 / 25]])


def test_lamp_equals_the_definition_on_a_convolution() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(score_lamp(weight), lamp_slowly(weight), rtol=1e-9)


def test_lamp_of_zeros_is_zero_and_finite() -> None:
    assert score_lamp(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_magnitude_ignores_sign() -> None:
    assert score_magnitude(torch.tensor([-2.0, 1.0])).tolist() == [2.0, 1.0]


def test_lowest_takes_the_exact_share_even_among_equals() -> None:
    assert lowest(np.array([[1.0, 1.0], [1.0, 0.5]]), 0.5).tolist() == [[True, False], [False, True]]


def test_one_ranking_decides_how_much_each_layer_gives() -> None:
    # magnitudes 1 2 3 4 | 10 20 30 40: a global half takes the whole first layer, LAMP takes one half of each
    first, second = nn.Linear(4, 1), nn.Linear(4, 1)
    for criterion, expected in (("magnitude", (1.0, 0.0)), ("lamp", (0.5, 0.5))):
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
            second.weight.copy_(torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
        model = nn.ModuleDict({"first": first, "second": second})
        apply(model, PruneWeights(sparsity=0.5, criterion=criterion), {}, CONTEXT)
        assert (zero_share(first), zero_share(second)) == expected, criterion


@pytest.mark.parametrize("criterion", ["magnitude", "lamp"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_share_zero_over_the_network_and_the_rest_untouched(criterion: str, scope: str) -> None:
    model, before = net(), net().state_dict()
    apply(model, PruneWeights(0.7, criterion, scope), {}, CONTEXT)
    convs = [model[0], model[3], model[5]]
    total = sum(c.weight.numel() for c in convs)
    zeros = sum(int((c.weight == 0).sum()) for c in convs)
    assert abs(zeros - 0.7 * total) <= len(convs) / 2
    if scope == "layer":
        assert all(abs(zero_share(c) - 0.7) * c.weight.numel() <= 0.5 for c in convs)
    for key, value in model.state_dict().items():
        survived = value != 0
        assert torch.equal(value[survived], before[key][survived])
        if key not in ("0.weight", "3.weight", "5.weight"):
            assert torch.equal(value, before[key])


def test_a_layer_has_its_own_dial_and_the_others_are_ranked_without_it() -> None:
    model = net()
    apply(model, PruneWeights(0.6), {"3": 0.25, "5": 0.0}, CONTEXT)
    assert zero_share(model[3]) == pytest.approx(0.25)
    assert zero_share(model[5]) == 0.0
    assert zero_share(model[0]) == pytest.approx(0.6, abs=0.5 / model[0].weight.numel())


def test_pattern_keeps_the_largest_of_each_block_along_input_channels() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.1, 0.2, 0.3, -0.4]])[:, :, None, None].expand(1, 8, 1, 2)
    zero = beyond_pattern(score_magnitude(weight), 2, 4)
    assert zero.shape == (1, 8, 1, 2)
    for column in (0, 1):
        assert zero[0, :, 0, column].tolist() == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize(("pattern", "keep"), [("2:4", 2), ("1:4", 1)])
def test_pattern_on_a_network(pattern: str, keep: int) -> None:
    model = net()
    outcome = apply(model, PruneWeights(0.5, "magnitude", "layer", pattern, repair=False), {}, CONTEXT)
    assert [(s.layer, "3 input channels" in s.reason) for s in outcome.skipped] == [("0", True)]
    assert zero_share(model[0]) == 0.0
    blocks = model[3].weight.movedim(1, -1).reshape(-1, 4)
    assert bool(((blocks != 0).sum(1) == keep).all())
    assert bool(((model[5].weight.reshape(-1, 4) != 0).sum(1) == keep).all())


def test_pattern_leaves_out_a_layer_whose_dial_is_zero() -> None:
    model = net()
    apply(model, PruneWeights(0.5, "lamp", "global", "2:4"), {"3": 0.0}, CONTEXT)
    assert (zero_share(model[3]), zero_share(model[5])) == (0.0, 0.5)


@pytest.mark.parametrize("pattern", ["any", "2:4"])
def test_surviving_weights_make_up_for_the_lost_ones(pattern: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
    x = to_tensor(pixels[300:], CONTEXT.card)
    errors, zeros = [], []
    for repair in (False, True):
        model, images = net().eval(), Images(pixels[:300], None)
        apply(model, PruneWeights(0.5, "lamp", "layer", pattern, repair), {}, replace(CONTEXT, calibration=images))
        errors.append(float((model(x) - net().eval()(x)).detach().norm()))
        zeros.append([zero_share(model[i]) for i in (0, 3, 5)])
    assert zeros[0] == zeros[1]
    assert errors[1] < 0.6 * errors[0]


def test_without_images_the_reason_is_given() -> None:
    (skip,) = apply(net(), PruneWeights(0.5), {}, CONTEXT).skipped
    assert (skip.layer, "received 0 calibration images" in skip.reason) == ("repair", True)


def trained_options(**more: object) -> PruneWeights:
    return PruneWeights(**{"sparsity": 0.8, "epochs": 5, "learning_rate": 0.05, **more})  # type: ignore[arg-type]


def shares(model: nn.Module) -> dict[str, float]:
    return {n: zero_share(p) for n, p in model.named_modules() if isinstance(p, nn.Conv2d | nn.Linear)}


def test_zeros_grow_by_the_cube_and_then_stay() -> None:
    found: list[float] = []
    weight = nn.Linear(100, 10, bias=False)
    growing = Growing({"a": weight}, lambda share: {"a": lowest(score_magnitude(weight.weight), 0.9 * share)})
    for update in range(100):
        with torch.no_grad():  # training moves what is zero, too
            weight.weight += 0.01 * torch.randn(10, 100, generator=torch.Generator().manual_seed(update))
        growing((update + 1) / 100)
        found.append(zero_share(weight))
    assert found == sorted(found)
    # by hand: 20 stages over 60 updates, so after 30 of them 1 - 0.5³ = 0.875 of 0.9
    assert [found[at - 1] for at in (1, 30, 60, 100)] == [0.0, 0.788, 0.9, 0.9]


@pytest.mark.parametrize("pattern", ["any", "2:4"])
def test_training_ends_with_the_zeros_that_were_asked_for(pattern: str) -> None:
    model = tiny_model().module
    outcome = prune_weights.apply(model, trained_options(pattern=pattern), {"head": 0.5}, tiny_context(tiny_model()))
    assert [row.epoch for row in outcome.curve] == list(range(6))
    if pattern == "any":
        weights = {n: p for n, p in model.named_modules() if isinstance(p, nn.Conv2d | nn.Linear)}
        assert shares(model)["head"] == pytest.approx(0.5)
        others = [p.weight for n, p in weights.items() if n != "head"]
        assert sum(int((w == 0).sum()) for w in others) == round(0.8 * sum(w.numel() for w in others))
    else:
        assert [s.layer for s in outcome.skipped] == ["stem"]
        assert shares(model) == {"stem": 0.0, "block.0": 0.5, "block.2": 0.5, "down": 0.5, "head": 0.5}


def test_an_early_epoch_with_too_few_zeros_is_not_kept() -> None:
    """With labels that are wrong the network only gets worse, and still the last epochs are the ones that count."""
    train = tiny_data().train
    assert train.y is not None
    model, wrong = tiny_model().module, replace(tiny_context(), train=Images(train.x, (train.y + 1) % 4))
    curve = prune_weights.apply(model, trained_options(epochs=4, learning_rate=0.1), {}, wrong).curve
    assert curve[0].accuracy > max(row.accuracy for row in curve[3:])
    total = sum(p.weight.numel() for p in model.modules() if isinstance(p, nn.Conv2d | nn.Linear))
    zeros = sum(int((p.weight == 0).sum()) for p in model.modules() if isinstance(p, nn.Conv2d | nn.Linear))
    assert zeros == round(0.8 * total)


def test_growing_keeps_more_accuracy_than_all_at_once() -> None:
    context, results = tiny_context(tiny_model()), []
    options = trained_options(sparsity=0.95, epochs=20)
    for steps in ((prune_weights, options, None), (prune_weights, PruneWeights(0.95, repair=False), None)):
        technique, record, _ = steps
        model = tiny_model().module
        technique.apply(model, record, {}, context)
        results.append(accuracy(model, tiny_data().test, TINY))
    assert results[0] > results[1] + 0.05, results


def test_a_killed_run_chooses_the_same_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_state, "EVERY", 0.0)

    def stop(fraction: float, message: str, **_: object) -> None:
        if 0.35 < fraction < 0.9:
            raise Cancelled("stopped")

    straight, resumed = tiny_model().module, tiny_model().module
    options, context = trained_options(), tiny_context(tiny_model())
    whole = prune_weights.apply(straight, options, {}, context).curve
    with pytest.raises(Cancelled):
        prune_weights.apply(tiny_model().module, options, {}, replace(context, folder=tmp_path, report=stop))
    assert prune_weights.apply(resumed, options, {}, replace(context, folder=tmp_path)).curve == whole
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
