"""What a changed network learns from: the labels, the original's answers, or both; and that it never ends worse.

    loss = alpha · (teacher's answers, softened by the temperature) + (1 - alpha) · (labels)

The teacher term is T² · KL (Distilling the Knowledge in a Neural Network, Hinton et al. 2015), the correlation loss of
DIST (Knowledge Distillation from A Stronger Teacher, Huang et al. 2022) or the squared difference of logits (Comparing
Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation, Kim et al. 2021). Without labels the
teacher's answers stand in for them and alpha counts as 1; "accuracy" in the curve is then agreement with the teacher.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.answers import Asked, Kept
from core.engine.batches import Batch
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.precision import Mixed, device, placed
from core.engine.schedule import Epoch, Plan, best_merit
from core.engine.surgery import shortcuts
from core.engine.train import Judge, Loss, accuracy, cross_entropy, fit
from core.engine.training_state import AfterStep
from core.engine.zeros import surviving
from core.errors import DataError, RecipeError

SAMPLE = 512  # images for the loss before the first epoch
BATCH = 256


def kl_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of the softened answers, mean over the batch; logits (n, classes)."""
    soft = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(*soft, reduction="batchmean", log_target=True) * temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, row by row."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8).mean()


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """2 T² · (1 - correlation over the classes of an image) + the same over the images of a class."""
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return 2 * temperature**2 * (2 - _correlation(p, q) - _correlation(p.T, q.T))


def mse_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of the logits, each image's around their mean: what the KL tends to as T grows, up to a
    factor. No answer is softened, so that `temperature` says nothing."""
    return F.mse_loss(student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True))


TEACHER_LOSSES = {"kl": kl_loss, "dist": dist_loss, "mse": mse_loss}


@dataclass(frozen=True)
class Lesson:
    """Images with labels to train and to validate on, and what is asked of the answers."""

    train: Images
    validation: Images
    teacher: nn.Module | None
    loss: Loss


def make_lesson(
    context: Context,
    key: str,
    *,
    teacher: bool = True,
    alpha: float = 0.7,
    temperature: float = 4.0,
    compare: str = "kl",
    views: int = 0,
    blend: bool = False,
) -> Lesson:
    """What the step `key` trains on. Raises DataError without labels and teacher, RecipeError where none is there.

    With `views`, the teacher's answers to so many versions of each image are kept, in the context's folder if any.
    """
    train, validation, original = context.train, context.validation, context.teacher if teacher else None
    if teacher and original is None:
        raise RecipeError(f"{key} needs the original model as teacher; set teacher to false to learn from labels.")
    labelled = train.y is not None and validation.y is not None
    if original is None:
        if not labelled:
            raise DataError("Fine-tuning needs labels; received images without labels. With a teacher none are needed.")
        return Lesson(train, validation, None, cross_entropy)
    original.eval()
    if not labelled:
        train, validation = (answered(images, original, context) for images in (train, validation))
    path = context.folder / f"{key}-{len(train)}-{views}-{context.seed}.npy" if context.folder else None
    ask = Kept(original, len(train), views, path) if views else Asked(original)
    return Lesson(train, validation, original, make_loss(ask, compare, temperature, alpha if labelled else 1.0, blend))


def make_loss(
    ask: Callable[[Batch], Tensor], compare: str, temperature: float, alpha: float, blend: bool = False
) -> Loss:
    """The loss above; the teacher sees the very images that the student sees."""
    difference = TEACHER_LOSSES[compare]

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        seen, share = blended(batch) if blend else (batch, 1.0)
        answers = ask(seen)
        logits = module(seen.x)
        value = alpha * difference(logits, answers, temperature)
        if alpha == 1:
            return value
        right, other = F.cross_entropy(logits, batch.y), F.cross_entropy(logits, batch.y.flip(0))
        return value + (1 - alpha) * (share * right + (1 - share) * other)

    return loss


def blended(batch: Batch) -> tuple[Batch, float]:
    """Each image mixed with the one that comes as late as it comes early, and the share of the first: any is as likely,
    and the same for the same batch. Images as they are (view -1) stay.

    A network knows the images it was trained on by heart, so that its answers to them say little; a mixture is new to
    it (mixup: Beyond Empirical Risk Minimization, Zhang et al. 2018; as a lesson, Beyer et al. 2022).
    """
    if batch.view < 0:
        return batch, 1.0
    seed = int(batch.index[0]) + len(batch.index) * (1 + batch.view)
    share = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    return replace(batch, x=share * batch.x + (1 - share) * batch.x.flip(0)), share


@torch.no_grad()
def answered(images: Images, teacher: nn.Module, context: Context) -> Images:
    """The same images, labelled by the teacher."""
    batches = (to_tensor(images.x[i : i + BATCH], context.card) for i in range(0, len(images), BATCH))
    return Images(images.x, torch.cat([teacher(x).argmax(1) for x in batches]).numpy())


def learn(
    model: nn.Module,
    lesson: Lesson,
    plan: Plan,
    context: Context,
    *,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
    forward: nn.Module | None = None,
) -> tuple[Epoch, ...]:
    """Train `model` in place; the best epoch is kept, and that may be the model as it came (epoch 0), unless the plan
    says that early epochs do not count.

    With a teacher the best is that whose answers are nearest to the teacher's on the validation images, without one
    that of the highest accuracy there. Labels are poor judges of a model that somebody else trained, perhaps on those
    very images: what is left of its memory looks like accuracy.
    """
    start, teacher = copy.deepcopy(model.state_dict()), lesson.teacher
    twin = model if forward is None else forward
    with placed(teacher):
        judge = None if teacher is None else _nearness(twin, teacher, lesson.validation, context)
        with placed(model):
            first = _before(model, twin, lesson, context, judge)
        curve = fit(
            model,
            lesson.train,
            lesson.validation,
            context.card,
            plan,
            loss=lesson.loss,
            report=context.report,
            checkpoint=checkpoint,
            after_step=after_step,
            forward=forward,
            judge=judge,
        )
    if plan.first == 1 and first.merit > best_merit(curve, plan):
        model.load_state_dict(start)
    return (first, *curve)


def _nearness(twin: nn.Module, teacher: nn.Module, images: Images, context: Context) -> Judge:
    """How near the answers of `twin`, wherever its weights are by then, come to the teacher's on these images."""
    wanted = logits_of(teacher, images, context)
    return lambda _: -float(kl_loss(logits_of(twin, images, context), wanted, 1.0))


@torch.no_grad()
def logits_of(module: nn.Module, images: Images, context: Context) -> Tensor:
    """(n, classes), on the processor."""
    quick, starts = Mixed(module.eval()), range(0, len(images), BATCH)
    return torch.cat([quick(to_tensor(images.x[i : i + BATCH], context.card)).cpu() for i in starts])


@torch.no_grad()
def _before(model: nn.Module, twin: nn.Module, lesson: Lesson, context: Context, judge: Judge | None) -> Epoch:
    """The row of the curve for the network as it came; its loss is that of the first training images as they are."""
    images = lesson.train.take(slice(0, SAMPLE))
    assert images.y is not None
    x, y = to_tensor(images.x, context.card), torch.from_numpy(images.y)
    model.eval()
    loss = lesson.loss(Mixed(twin), Batch(x, y.to(device()), torch.arange(len(images)), -1))
    right = accuracy(model, lesson.validation, context.card)
    return Epoch(0, float(loss), right, judge(model) if judge else None)


def keep_zeros(module: nn.Module) -> AfterStep:
    """A function that puts back the zeros that `module` has now, in layers where more than 5 % of weights are zero."""
    free = {f"{path}.weight" for path in shortcuts(module)}
    weights = {name: p for name, p in module.named_parameters() if p.ndim > 1 and name not in free}
    masks = {name: surviving(weight) for name, weight in weights.items()}
    kept = {name: mask for name, mask in masks.items() if mask is not None}

    @torch.no_grad()
    def put_back(changed: nn.Module, progress: float) -> None:
        for name, mask in kept.items():
            weight = changed.get_parameter(name)
            weight.mul_(mask.to(weight.device))

    return put_back


def checkpoint_of(model: nn.Module, key: str, options: Any, context: Context) -> Path | None:
    """Where this very training is saved: another start, other options or other images have another file."""
    if context.folder is None:
        return None
    digest = hashlib.sha256(f"{asdict(options)} {context.seed} {len(context.train)}".encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return context.folder / f"{key}-{digest.hexdigest()[:10]}.pt"
