"""distill: losses against NumPy, the best epoch (even none) kept, zeros kept, networks without BatchNorm, resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy

from core.cards import ModelCard
from core.engine.answers import Kept
from core.engine.batches import Batch
from core.engine.batchnorm import fold_batchnorm, insert_batchnorm
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.hints import distance, find_maps, watched
from core.engine.probe import DECAY, solve_last_layer
from core.engine.teaching import blended, dist_loss, kl_loss, make_loss, mse_loss
from core.engine.techniques.distill import apply
from core.engine.train import accuracy
from core.errors import Cancelled, DataError, RecipeError
from core.options import Distill

CARD = ModelCard("tiny", "Tiny", (1, 8, 8), ("dark", "bright"), mean=(0.5,), std=(0.25,))
SCHEDULES = ("cosine", "onecycle")
LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]]), np.array([[1.0, 1.5, 0.0], [0.0, -1.0, 2.0]])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int, labelled: bool = True) -> Images:
    """Class 1 is brighter on average; noise makes it a task."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(110 + 30 * y[:, None, None, None], 60, (count, 8, 8, 1)).clip(0, 255).astype(np.uint8)
    return Images(x, y if labelled else None)


def net(seed: int = 0, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)]
    kept = [layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm2d)]
    return nn.Sequential(*kept, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()


class Brightness(nn.Module):
    """A perfect teacher: bright images belong to class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = 20 * (x.mean((1, 2, 3)) - (125 / 255 - 0.5) / 0.25)
        return torch.stack([-light, light], 1)


def context(labelled: bool = True, teacher: nn.Module | None = None, **about: object) -> Context:
    train, validation = images(256, 0, labelled), images(300, 1, labelled)
    made = Context(CARD, train, images(64, 2, False), validation, True, teacher)
    return replace(made, **about)  # type: ignore[arg-type]


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_kl_loss_by_numpy() -> None:
    student, teacher = LOGITS
    p, q = softmax(teacher / 3), softmax(student / 3)
    expected = 9 * (p * np.log(p / q)).sum(1).mean()
    assert float(kl_loss(*map(torch.from_numpy, LOGITS), 3.0)) == pytest.approx(expected)
    assert float(kl_loss(torch.from_numpy(student), torch.from_numpy(student), 3.0)) == pytest.approx(0, abs=1e-12)


def test_dist_loss_by_numpy() -> None:
    p, q = (softmax(z / 2) for z in LOGITS)
    rows = np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(2)])
    columns = np.mean([np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(3)])
    expected = 2 * 4 * ((1 - rows) + (1 - columns))
    assert float(dist_loss(*map(torch.from_numpy, LOGITS), 2.0)) == pytest.approx(expected)


def test_mse_loss_by_numpy_and_as_the_limit_of_kl() -> None:
    student, teacher = (z - z.mean(1, keepdims=True) for z in LOGITS)
    logits = [torch.from_numpy(z) for z in LOGITS]
    assert float(mse_loss(*logits, 2.0)) == pytest.approx(np.mean((student - teacher) ** 2))
    assert float(mse_loss(logits[0], logits[0] + 5, 1.0)) == pytest.approx(0, abs=1e-12)  # the same answers
    assert float(kl_loss(*logits, 1e4)) == pytest.approx(float(mse_loss(*logits, 1.0)) / 2, rel=1e-3)


def test_a_student_learns_from_the_teacher_alone_without_labels() -> None:
    model, labelled = net(), images(300, 1)
    before = accuracy(model, labelled, CARD)
    outcome = apply(model, Distill(8, 0.05, shift=0), {}, context(False, Brightness()))
    agreement = accuracy(model, Images(labelled.x, Brightness()(to_tensor(labelled.x, CARD)).argmax(1).numpy()), CARD)
    assert before < 0.7 < 0.85 < agreement
    assert agreement == pytest.approx(max(row.accuracy for row in outcome.curve))
    assert [row.epoch for row in outcome.curve] == list(range(9))


@pytest.mark.parametrize("loss", ["dist", "mse"])
def test_other_losses_train_too(loss: str) -> None:
    curve = apply(net(), Distill(16, 0.05, alpha=0.5, loss=loss, shift=0), {}, context(teacher=Brightness())).curve
    assert curve[-1].loss < 0.7 * curve[0].loss
    assert curve[-1].accuracy > 0.85 > curve[0].accuracy


def test_alpha_decides_between_teacher_and_labels() -> None:
    flipped = images(256, 0)
    assert flipped.y is not None
    wrong = context(teacher=Brightness(), train=Images(flipped.x, 1 - flipped.y))
    scores = {}
    for alpha in (0.0, 1.0):
        model = net()
        curve = apply(model, Distill(6, 0.05, alpha=alpha, shift=0), {}, wrong).curve
        scores[alpha] = curve[-1].accuracy
    assert scores[0.0] < 0.3
    assert scores[1.0] > 0.8


def test_fine_tuning_without_a_teacher() -> None:
    model = net()
    curve = apply(model, Distill(10, 0.05, teacher=False, shift=0), {}, context()).curve
    best = max(row.accuracy for row in curve)
    assert accuracy(model, images(300, 1), CARD) == pytest.approx(best)
    assert best > 0.85
    assert curve[-1].loss < curve[0].loss


def test_epoch_0_is_kept_when_training_only_harms() -> None:
    model = net()
    apply(model, Distill(6, 0.05, teacher=False, shift=0), {}, context())
    good = copy.deepcopy(model.state_dict())
    flipped = images(256, 0)
    assert flipped.y is not None
    harmful = context(train=Images(flipped.x, 1 - flipped.y))
    outcome = apply(model, Distill(2, 0.1, teacher=False, shift=0), {}, harmful)
    assert outcome.curve[0].accuracy > max(row.accuracy for row in outcome.curve[1:])
    assert all(torch.equal(value, good[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("norm", [True, False])
def test_zeros_of_a_pruned_layer_stay_and_stray_zeros_do_not(norm: bool) -> None:
    model = net(norm=norm)
    pruned, dense = [part for part in model if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        pruned.weight[::2] = 0.0  # half of the layer
        dense.weight[0, 1].view(-1)[:5] = 0.0  # 5 of 576, behind a channel that is still alive
    zero = pruned.weight == 0
    apply(model, Distill(1, 0.05, teacher=False), {}, context())
    pruned, dense = [part for part in model if isinstance(part, nn.Conv2d)]
    assert torch.equal(pruned.weight == 0, zero)
    assert not bool((dense.weight == 0).any())


@pytest.mark.parametrize("unit", [False, True])
def test_batchnorm_is_inserted_and_folded_without_a_trace(unit: bool) -> None:
    model, x = net(norm=False), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    before, names = model(x), set(model.state_dict())
    with torch.no_grad():
        model[0].weight[0] *= 20  # as the scale of a BatchNorm that an export has folded
        model[0].weight[1] = 0.0
    original = copy.deepcopy(model)
    before = model(x)
    inserted = insert_batchnorm(model, x, unit_length=unit)
    assert inserted == ("0", "2")
    if unit:
        lengths = model[0][0].weight.flatten(1).norm(dim=1)
        assert lengths[1] == 0
        assert torch.allclose(lengths[[0, *range(2, len(lengths))]], torch.ones(len(lengths) - 1))
    assert torch.allclose(model(x), before, atol=1e-5)
    assert torch.allclose(model(x - 3), original(x - 3), rtol=1e-4, atol=1e-4)
    conv, norm = model[0]
    y = conv(x).detach()
    assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, y.var((0, 2, 3), unbiased=False), rtol=1e-4)
    model.train()
    assert torch.allclose(
        model(x), before, atol=1e-3
    )  # one batch is all the data, so training sees the same statistics
    fold_batchnorm(model, inserted)
    assert set(model.state_dict()) == names
    assert not model.training


def test_blended_images_are_answered_and_labelled_as_mixtures() -> None:
    x, y, index = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), torch.tensor([7, 3, 5, 1])
    batch = Batch(x, y, index, 2)
    seen, share = blended(batch)
    assert 0 < share < 1
    assert torch.equal(seen.x[0], share * x[0] + (1 - share) * x[3])
    assert blended(batch)[1] == share  # a run that goes on sees the same
    assert blended(replace(batch, view=3))[1] != share
    assert blended(replace(batch, view=-1)) == (replace(batch, view=-1), 1.0)

    model, teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    loss = make_loss(lambda b: teacher(b.x), "kl", 2.0, 0.25, blend=True)
    logits = model(seen.x)
    labels = share * cross_entropy(logits, y) + (1 - share) * cross_entropy(logits, y.flip(0))
    expected = 0.25 * kl_loss(logits, teacher(seen.x), 2.0) + 0.75 * labels
    assert torch.allclose(loss(model, batch), expected)


def test_a_network_without_batchnorm_trains_at_a_rate_that_needs_it() -> None:
    model = net(norm=False)
    names = set(model.state_dict())
    curve = apply(model, Distill(10, 0.2, teacher=False, shift=0), {}, context()).curve
    assert max(row.accuracy for row in curve) > 0.85
    assert set(model.state_dict()) == names
    assert accuracy(model, images(300, 1), CARD) == pytest.approx(max(row.accuracy for row in curve), abs=0.005)


def _stop_after(epochs: int) -> Callable[..., None]:
    def report(fraction: float, message: str, **_: object) -> None:
        if message.startswith(f"Epoch {epochs} "):
            raise Cancelled("stopped")

    return report


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    options, teacher = Distill(4, 0.05, shift=1), Brightness()
    straight, resumed = net(norm=False), net(norm=False)
    whole = apply(straight, options, {}, context(teacher=teacher)).curve
    with pytest.raises(Cancelled):
        apply(net(norm=False), options, {}, context(teacher=teacher, folder=tmp_path, report=_stop_after(2)))
    seen: list[str] = []
    again = context(teacher=teacher, folder=tmp_path, report=lambda _, message, **__: seen.append(message))
    assert apply(resumed, options, {}, again).curve == whole
    assert not any("epoch 1 of" in message or "epoch 2 of" in message for message in seen)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


class Counting(Brightness):
    """Counts the images that it is asked about in training mode of the student: one call a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_teacher_is_asked_once_about_each_version_of_an_image(on_disk: bool, tmp_path: Path) -> None:
    teacher, options = Counting(), Distill(5, 0.05, shift=1, views=2)
    apply(net(), options, {}, context(teacher=teacher, folder=tmp_path if on_disk else None))
    assert teacher.seen == 300 + 256 + 2 * 256  # validation, the loss before the first epoch, then two versions
    assert len(list(tmp_path.glob("*.npy"))) == on_disk


def test_kept_answers_are_those_of_the_very_batch() -> None:
    """With as many versions as epochs nothing is ever read back; with one, every epoch sees the same and is answered
    as if it were asked anew."""
    asked, kept = Counting(), Kept(Brightness(), 40, 2, None)
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for view, chosen in ((0, range(20)), (1, range(40)), (0, range(10, 30)), (0, [35, 12, 3]), (-1, range(5))):
        index = torch.tensor(list(chosen))
        batch = Batch(x[index] + view, torch.zeros(len(index)), index, view)
        torch.testing.assert_close(kept(batch), asked(batch.x))


def test_a_killed_run_with_stored_views_ends_the_same(tmp_path: Path) -> None:
    options, teacher = Distill(4, 0.05, shift=1, views=2), Brightness()
    straight, resumed = net(), net()
    whole = apply(straight, options, {}, context(teacher=teacher)).curve
    with pytest.raises(Cancelled):
        apply(net(), options, {}, context(teacher=teacher, folder=tmp_path, report=_stop_after(3)))
    silent = Counting()
    assert apply(resumed, options, {}, context(teacher=silent, folder=tmp_path)).curve == whole
    assert silent.seen == 300 + 256, "what was answered before the kill is not asked again"
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_schedule_and_patience_reach_the_training() -> None:
    plain, cycled = (apply(net(), Distill(3, 0.1, schedule=s), {}, context(teacher=Brightness())) for s in SCHEDULES)
    assert [row.loss for row in plain.curve] != [row.loss for row in cycled.curve]
    flipped = images(256, 0)
    assert flipped.y is not None
    harmful = context(train=Images(flipped.x, 1 - flipped.y))
    curve = apply(net(), Distill(20, 0.2, teacher=False, patience=2), {}, harmful).curve
    assert len(curve) < 21


def narrow(wide: nn.Sequential, kept: list[int]) -> nn.Sequential:
    """The first convolution with some of its channels only; the next reads those."""
    torch.manual_seed(0)
    model, width = net(norm=False), len(kept)
    model[0], model[2] = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 8, 3, 2)
    with torch.no_grad():
        model[0].weight.copy_(wide[0].weight[kept])
        model[0].bias.copy_(wide[0].bias[kept])
    return model.eval()


def test_hints_compare_the_last_value_of_each_size_and_map_missing_channels() -> None:
    teacher, x = net(norm=False), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    same = find_maps(net(norm=False), teacher, x)
    assert same == {"1": None, "3": None}  # the ReLUs behind both convolutions, 8×8 and 3×3
    student = narrow(teacher, [0, 2, 3, 5])
    mapping = find_maps(student, teacher, x)["1"]
    assert mapping is not None
    ours, theirs = torch.relu(student[0](x)).detach(), torch.relu(teacher[0](x)).detach()
    a = torch.cat([ours, torch.ones(64, 1, 8, 8)], 1).transpose(0, 1).flatten(1).T.numpy().astype(float)
    b = theirs.transpose(0, 1).flatten(1).T.numpy().astype(float)
    best = ((a @ np.linalg.lstsq(a, b, rcond=None)[0] - b) ** 2).mean() / (b**2).mean()
    assert float(distance(ours, theirs, mapping)) == pytest.approx(best, rel=0.02)
    assert float(distance(theirs, theirs, None)) == 0
    assert float(distance(0 * theirs, theirs, None)) == pytest.approx(1)


def test_hints_bring_the_student_nearer_to_the_teacher_half_way_and_leave_no_trace() -> None:
    x = to_tensor(images(200, 5).x, CARD)
    found = []
    for hint in (0.0, 10.0):
        teacher = net(seed=3, norm=False)
        student = narrow(teacher, [0, 2, 3, 5])
        maps = find_maps(student, teacher, x)
        apply(student, Distill(6, 0.05, alpha=1.0, hint=hint, shift=0), {}, context(teacher=teacher))
        with watched(student) as ours, watched(teacher) as theirs, torch.no_grad():
            student(x), teacher(x)
            found.append(sum(float(distance(ours[name], theirs[name], maps[name])) for name in maps))
        assert not any(part._forward_hooks for module in (student, teacher) for part in module.modules())
    assert found[1] < 0.7 * found[0]


def test_blended_images_need_a_teacher() -> None:
    with pytest.raises(RecipeError, match="set teacher to true or blend to false"):
        apply(net(), Distill(blend=True, teacher=False), {}, context())


@pytest.mark.parametrize("option", [{"hint": 1.0}, {"blend": True}])
def test_a_teacher_that_has_to_run_and_kept_answers_exclude_each_other(option: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="set views to 0"):
        apply(net(), Distill(views=2, **option), {}, context(teacher=Brightness()))


def test_the_last_layer_is_solved_first_where_that_helps() -> None:
    model, labelled = net(norm=False), images(300, 1)
    rest = [p.detach().clone() for p in list(model.parameters())[:-2]]
    before = accuracy(model, labelled, CARD)
    assert solve_last_layer(model, images(256, 0), labelled, context()) == ""
    assert accuracy(model, labelled, CARD) > before + 0.1
    assert all(torch.equal(a, b) for a, b in zip(rest, model.parameters(), strict=False))
    solved = model[-1].weight.detach().clone()
    flipped = images(256, 0)
    assert flipped.y is not None
    assert "fewer validation images" in solve_last_layer(model, Images(flipped.x, 1 - flipped.y), labelled, context())
    assert torch.equal(model[-1].weight, solved)
    bare = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    assert "does not end in a linear layer" in solve_last_layer(bare, images(64, 0), labelled, context())


def test_with_a_teacher_the_last_layer_is_solved_for_its_answers_whatever_the_labels_say() -> None:
    """The student is the teacher with another last layer; every label is wrong."""
    teacher, labelled = net(norm=False), images(300, 1)
    assert labelled.y is not None
    wrong = Images(labelled.x, 1 - labelled.y)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[-1].weight.copy_(-teacher[-1].weight)
    assert solve_last_layer(student, wrong, wrong, context(), teacher) == ""
    with torch.no_grad():
        x = to_tensor(labelled.x, CARD)
        assert float(kl_loss(student(x), teacher(x), 1.0)) < 1e-4
    assert "less like the original" in solve_last_layer(teacher, wrong, wrong, context(), copy.deepcopy(teacher))


def test_the_last_layer_is_the_optimum_of_its_loss() -> None:
    """Against scikit-learn's logistic regression, whose penalty pulls toward zero as ours pulls toward the start."""
    model, train = net(norm=False), images(256, 0)
    with torch.no_grad():
        model[-1].weight.fill_(1e-6)  # exact zeros would count as pruned
        model[-1].bias.zero_()
        features = nn.Sequential(*list(model)[:-1])(to_tensor(train.x, CARD)).numpy()
    assert solve_last_layer(model, train, images(300, 1), context()) == ""
    ones = np.concatenate([features, np.ones((256, 1))], 1)  # our bias is pulled as well
    reference = LogisticRegression(C=1 / (256 * DECAY / 2), fit_intercept=False, max_iter=5000, tol=1e-10)
    reference.fit(ones, train.y)
    # two classes as one score: weights w and -w cost twice w², so the penalty of the score is a half
    expected = reference.predict_proba(ones)
    with torch.no_grad():
        found = model(to_tensor(train.x, CARD)).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_two_trainings_in_one_folder_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    model = net()
    for _ in range(2):
        curve = apply(model, Distill(1, 0.05, teacher=False), {}, context(folder=tmp_path)).curve
        assert len(curve) == 2
    assert len(list(tmp_path.glob("distill-*.pt"))) == 2


def test_what_is_missing_is_said() -> None:
    with pytest.raises(DataError, match="without labels"):
        apply(net(), Distill(teacher=False), {}, context(False))
    with pytest.raises(RecipeError, match="teacher"):
        apply(net(), Distill(), {}, context())


def test_labels_that_the_start_already_knows_do_not_keep_it() -> None:
    """As where an uploaded model was trained on what is now validation: its memory is not taken for quality."""
    student, around = net(), context(teacher=Brightness())
    with torch.no_grad():
        known = student(to_tensor(around.validation.x, CARD)).argmax(1).numpy()
    outcome = apply(
        student, Distill(4, 0.05, shift=1), {}, replace(around, validation=Images(around.validation.x, known))
    )
    assert outcome.curve[0].accuracy == 1.0 > outcome.curve[-1].accuracy
    with torch.no_grad():
        after = student(to_tensor(around.validation.x, CARD)).argmax(1).numpy()
    wanted = Brightness()(to_tensor(around.validation.x, CARD)).argmax(1).numpy()
    assert (after == wanted).mean() > (known == wanted).mean()
