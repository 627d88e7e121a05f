"""Distillation and fine-tuning: train the changed model on the labels, the original's answers, or both.

What earlier steps did is kept: where more than 5 % of a layer's weights are exactly zero, each zero stays zero.
A network without BatchNorm trains with one behind each convolution, folded back at the end.

Distilling the Knowledge in a Neural Network, Hinton et al. 2015; the losses are in `core/engine/teaching.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from core.candidate import Skip
from core.engine.batchnorm import fold_batchnorm, has_batchnorm, insert_batchnorm
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.hints import hinted
from core.engine.probe import solve_last_layer
from core.engine.schedule import Plan
from core.engine.teaching import Lesson, checkpoint_of, keep_zeros, learn, make_lesson
from core.errors import RecipeError
from core.options import Distill

SAMPLE = 512  # images for BatchNorm statistics
CLIP = 1.0  # the first answers of a changed network are far from the teacher's: one such step would ruin the repair


def apply(model: nn.Module, options: Distill, layers: Mapping[str, object], context: Context) -> Outcome:
    """Train `model` in place; the best epoch by validation is kept, and that may be the model as it came (epoch 0).

    Raises DataError without labels and teacher, RecipeError for options that exclude each other. Resumes from
    `context.folder` after a kill.
    """
    _check(options)
    lesson = make_lesson(
        context,
        "distill",
        teacher=options.teacher,
        alpha=options.alpha,
        temperature=options.temperature,
        compare=options.loss,
        views=options.views,
        blend=options.blend,
    )
    plan = Plan(
        options.epochs,
        options.learning_rate,
        schedule=options.schedule,
        shift=options.shift,
        flip=context.flip,
        views=options.views if options.teacher else 0,
        patience=options.patience,
        clip=CLIP,
        seed=context.seed,
    )
    path = checkpoint_of(model, "distill", options, context)
    sample = to_tensor(lesson.train.x[:SAMPLE], context.card)
    skipped: list[Skip] = []
    if options.head_first:
        reason = solve_last_layer(model, lesson.train, lesson.validation, context, lesson.teacher)
        skipped += [Skip("distill", "last layer", reason)] if reason else []
    inserted = () if has_batchnorm(model) else insert_batchnorm(model, sample, unit_length=True)
    with _hinted(lesson, options, model, sample) as whole:
        curve = learn(model, whole, plan, context, checkpoint=path, after_step=keep_zeros(model))
    fold_batchnorm(model, inserted)
    return Outcome(model, tuple(skipped), curve)


def _check(options: Distill) -> None:
    if options.blend and not options.teacher:
        raise RecipeError("distill: blended images are answered by the teacher; set teacher to true or blend to false.")
    if (options.hint or options.blend) and options.views and options.teacher:
        raise RecipeError(
            "distill: hints and blended images need the teacher to run, and views keep its answers; set views to 0, "
            "or hint to 0 and blend to false."
        )


@contextmanager
def _hinted(lesson: Lesson, options: Distill, model: nn.Module, sample: Tensor) -> Iterator[Lesson]:
    """The lesson, with hints from within the teacher where they are wanted."""
    if not options.hint or lesson.teacher is None:
        yield lesson
        return
    with hinted(lesson.loss, options.hint, model, lesson.teacher, sample) as loss:
        yield replace(lesson, loss=loss)
