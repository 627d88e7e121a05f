"""Distillation and fine-tuning: train the changed model on the labels, the original's answers, or both.

    loss = alpha · (teacher's answers, softened by the temperature) + (1 - alpha) · (labels)

The teacher term is T² · KL (Distilling the Knowledge in a Neural Network, Hinton et al. 2015) or the correlation loss
of DIST (Knowledge Distillation from A Stronger Teacher, Huang et al. 2022). Without labels the teacher's answers stand
in for them and alpha counts as 1; "accuracy" in the curve is then agreement with the teacher.

What earlier steps did is kept: where more than 5 % of a layer's weights are exactly zero, each zero stays zero.
A network without BatchNorm trains with one behind each convolution, folded back at the end.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.batchnorm import fold_batchnorm, has_batchnorm, insert_batchnorm
from core.engine.context import Context, Outcome
from core.engine.data import Images, to_tensor
from core.engine.precision import Mixed, device, placed
from core.engine.surgery import shortcuts
from core.engine.train import Epoch, Loss, Plan, accuracy, cross_entropy, fit
from core.engine.zeros import surviving
from core.errors import DataError, RecipeError
from core.options import Distill

SAMPLE = 512  # images for BatchNorm statistics and for the loss before the first epoch
BATCH = 256
CLIP = 1.0  # the first answers of a changed network are far from the teacher's: one such step would ruin the repair


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


TEACHER_LOSSES = {"kl": kl_loss, "dist": dist_loss}


def make_loss(teacher: nn.Module, options: Distill, alpha: float) -> Loss:
    """The loss above; the teacher sees the very images that the student sees."""
    compare, quick = TEACHER_LOSSES[options.loss], Mixed(teacher)

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            answers = quick(x)
        logits = module(x)
        value = alpha * compare(logits, answers, options.temperature)
        return value if alpha == 1 else value + (1 - alpha) * F.cross_entropy(logits, y)

    return loss


def keep_zeros(module: nn.Module) -> Callable[[nn.Module], None]:
    """A function that puts back the zeros that `module` has now, in layers where more than 5 % of weights are zero."""
    free = {f"{path}.weight" for path in shortcuts(module)}
    weights = {name: p for name, p in module.named_parameters() if p.ndim > 1 and name not in free}
    masks = {name: surviving(weight) for name, weight in weights.items()}
    kept = {name: mask for name, mask in masks.items() if mask is not None}

    @torch.no_grad()
    def put_back(changed: nn.Module) -> None:
        for name, mask in kept.items():
            weight = changed.get_parameter(name)
            weight.mul_(mask.to(weight.device))

    return put_back


@torch.no_grad()
def answered(images: Images, teacher: nn.Module, context: Context) -> Images:
    """The same images, labelled by the teacher."""
    batches = (to_tensor(images.x[i : i + BATCH], context.card) for i in range(0, len(images), BATCH))
    return Images(images.x, torch.cat([teacher(x).argmax(1) for x in batches]).numpy())


def checkpoint(model: nn.Module, options: Distill, context: Context) -> Path | None:
    """Where this very training is saved: another start, other options or other images have another file."""
    if context.folder is None:
        return None
    digest = hashlib.sha256(f"{asdict(options)} {context.seed} {len(context.train)}".encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return context.folder / f"distill-{digest.hexdigest()[:10]}.pt"


def _parts(options: Distill, context: Context) -> tuple[Images, Images, nn.Module | None, float]:
    """Training and validation images with labels, the teacher and alpha. Raises DataError or RecipeError."""
    train, validation, teacher = context.train, context.validation, context.teacher if options.teacher else None
    if options.teacher and teacher is None:
        raise RecipeError("distill needs the original model as teacher; set teacher to false to learn from labels.")
    if train.y is not None and validation.y is not None:
        return train, validation, teacher, options.alpha if teacher else 0.0
    if teacher is None:
        raise DataError("Fine-tuning needs labels; received images without labels. With a teacher none are needed.")
    teacher.eval()
    return answered(train, teacher, context), answered(validation, teacher, context), teacher, 1.0


def apply(model: nn.Module, options: Distill, layers: Mapping[str, object], context: Context) -> Outcome:
    """Train `model` in place; the best epoch by validation is kept, and that may be the model as it came (epoch 0).

    With a teacher the best is that of the smallest loss on the validation images. Their labels are poor judges: whoever
    trained the original may have used those very images, and then what is left of its memory looks like accuracy.

    Raises DataError without labels and teacher. Resumes from `context.folder` after a kill.
    """
    train, validation, teacher, alpha = _parts(options, context)
    plan = Plan(
        options.epochs, options.learning_rate, shift=options.shift, flip=context.flip, clip=CLIP, seed=context.seed
    )
    path = checkpoint(model, options, context)
    loss = cross_entropy if teacher is None else make_loss(teacher.eval(), options, alpha)
    sample = train.take(slice(0, SAMPLE))
    inserted = () if has_batchnorm(model) else insert_batchnorm(model, to_tensor(sample.x, context.card))
    start = copy.deepcopy(model.state_dict())

    def judge(module: nn.Module) -> float:
        if teacher is None:
            return accuracy(module, validation, context.card)
        return -mean_loss(module, validation, loss, context)

    with placed(teacher):
        with placed(model):
            first = Epoch(0, mean_loss(model, sample, loss, context), accuracy(model, validation, context.card))
            before = judge(model)
        curve = fit(
            model,
            train,
            validation,
            context.card,
            plan,
            loss=loss,
            report=context.report,
            checkpoint=path,
            after_step=keep_zeros(model),
            judge=judge,
        )
        with placed(model):
            worse = judge(model) < before
    if worse:
        model.load_state_dict(start)
    fold_batchnorm(model, inserted)
    return Outcome(model, curve=(first, *curve))


@torch.no_grad()
def mean_loss(module: nn.Module, images: Images, loss: Loss, context: Context) -> float:
    """Of labelled images, as they are, in evaluation mode."""
    assert images.y is not None
    module.eval()
    quick, total = Mixed(module), 0.0
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        y = torch.from_numpy(images.y[part]).to(device())
        total += float(loss(quick, to_tensor(images.x[part], context.card), y)) * len(y)
    return total / len(images)
