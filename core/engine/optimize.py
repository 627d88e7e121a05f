"""The automatic recipe: ask for a recipe, make it, keep it if it is the best so far within the allowed loss; again.

What to ask for is `core/strategy.py`'s business; recipes are made and measured by the same `build` and `measure` as any
other. Trials are compared by their answers to validation images alone: `build` gets data whose test part is empty, and
no trial answers the test images before it is the new best and measured, as a candidate that stays in the workspace
whatever happens afterwards. So there is a best so far to download from the first trial on. What is used of the test
part is how sure the original is there, since of images that it was trained on it may be far surer.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from core.candidate import Latency
from core.engine import evaluate, latency
from core.engine.data import Data, Images, to_tensor
from core.engine.formats.onnx_facts import file_facts
from core.engine.identity import candidate_id
from core.engine.judge import Unseen, counted_losses, expected_losses, standard_error, unseen_losses
from core.engine.models import Model
from core.engine.run import Built, build, measure
from core.errors import ModelError, RecipeError
from core.recipe import Recipe, Step
from core.strategy import Goal, Strategy, Trial
from core.workspace import Workspace

JUDGED = 2000  # images that a trial is judged on, at most
NOISE = 0.02  # a gain below this share is none
TRAINABLE = 500  # training images from which training can help
FEW = 10_000  # training images below which the usual rate undoes more of the repair than it wins back
GENTLE_RATE = 0.001
TRAINING_SHARE = 0.5  # of the time left, that one training may take
MOST_EPOCHS = 20
PROBED = 128  # images that the length of an epoch is estimated from
Report = Callable[..., None]


class TimeUp(Exception):
    """The minutes are over; whatever is being made is dropped."""


@dataclass(frozen=True)
class Row:
    """A trial as it is shown and kept."""

    title: str
    loss: float  # share of the images, expected
    size_bytes: int
    macs: int
    speedup: float | None  # batch 1, one thread, measured beside the original
    kept: bool
    why: str
    candidate: str = ""  # id, where it was verified
    seconds: float = 0.0


class Search:
    """One optimization: what it works on, what it has tried, and the best so far."""

    def __init__(
        self,
        space: Workspace,
        ids: tuple[str, str],
        model: Model,
        data: Data,
        goal: Goal,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        """The minutes count from `began` on, by default from now."""
        self.space, self.ids, self.model, self.data, self.goal = space, ids, model, data, goal
        self.report, self.clock = report, clock
        self.began = clock() if began is None else began
        self.end = self.began + 60 * goal.minutes
        self.blind = replace(data, test=data.test.take(slice(0, 0)))
        self.original = space.folder("models", ids[0]) / "model.onnx"
        self.judged = judged(data)
        self.rows: list[Row] = []
        self.unseen = Unseen.read(self.original.with_name(f"baseline-{ids[1]}.npz"), data.test)
        self.before = evaluate.predict(self.original, self.judged, model.card, self.during("Answers of the original"))
        self.best: Row | None = None
        self.best_gain = 1.0
        self.slowest = 0.0  # seconds that a trial took
        self.epoch_seconds: float | None = None

    @property
    def left(self) -> float:
        return self.end - self.clock()

    def run(self, strategy: Strategy) -> str:
        """Try until nothing is left to try or the time is up; returns which. `report` may raise Cancelled."""
        asking = strategy.ask()
        try:
            recipe = next(asking)
            while True:
                if self.rows and self.left < self.slowest:
                    raise TimeUp
                recipe = asking.send(self.attempt(recipe))
        except StopIteration as stop:
            return str(stop.value)
        except TimeUp:
            return "The time is up."

    def attempt(self, recipe: Recipe) -> Trial:
        """Make a recipe, judge it, and if it is the best so far, measure it as a candidate."""
        began = self.clock()
        name = candidate_id(recipe, *self.ids)
        folder = self.space.folder("candidates", name)
        known = (folder / "candidate.json").exists()
        title = f"Trial {len(self.rows) + 1}, {recipe.title}"
        built: Built | None = None
        try:
            if not known:
                built = build(recipe, self.model, self.blind, folder, report=self.during(title))
            trial, row = self._judge(recipe, folder / "model.onnx", self.during(f"{title}: judging"))
            if trial.kept or not self.rows:  # the first is there to download in any case
                if built is not None:
                    baseline = self.original.with_name(f"baseline-{self.ids[1]}.npz")
                    seen = self.during(f"Verifying {recipe.title}", final=True)
                    measure(built, self.model, self.data, report=seen, ids=self.ids, baseline=baseline)
                row = replace(row, candidate=name)
        except (ModelError, RecipeError) as error:
            trial, row = Trial(recipe, 1.0, 0.0, False, False), Row(recipe.title, 1.0, 0, 0, None, False, str(error))
        finally:
            if not (folder / "candidate.json").exists():
                shutil.rmtree(folder, ignore_errors=True)  # what was not verified is not kept
        self._note(recipe, trial, replace(row, seconds=self.clock() - began))
        return trial

    def _judge(self, recipe: Recipe, file: Path, report: Report) -> tuple[Trial, Row]:
        """Loss on the validation images, gain over the original, and whether that beats the best. The loss is within
        what is allowed if a standard error more would be: of many trials those whose luck was best come through."""
        after = evaluate.predict(file, self.judged, self.model.card, report)
        losses = self._losses(after, trains(recipe) > 0)
        loss, error = float(losses.mean()), standard_error(losses)
        timing, (size, macs) = self.timed(self.original, file), self.costs(file)
        before = self.costs(self.original)
        gains = {"latency": timing.speedup, "size": before[0] / size, "macs": before[1] / macs}
        gain, within = gains[self.goal.objective], loss + error <= self.goal.drop
        why = f"Loses {100 * loss:.2f} ± {100 * error:.2f} points, allowed are {100 * self.goal.drop:g}."
        if within:
            why = self._why_not(file, gain, timing)
        row = Row(recipe.title, loss, size, macs, timing.speedup, not why, why or "Best so far.")
        return Trial(recipe, loss, gain, within, row.kept), row

    def _losses(self, after: NDArray[np.float32], trained: bool) -> NDArray[np.float64]:
        if trained:
            return counted_losses(self.before, after, self.judged.y)
        if self.unseen is not None and self.judged.y is not None:
            return unseen_losses(self.before, after, self.unseen)
        return expected_losses(self.before, after, self.judged.y)

    def costs(self, file: Path) -> tuple[int, int]:
        """(bytes, MACs)."""
        return file.stat().st_size, file_facts(file, self.model.card.input_shape).macs

    def _why_not(self, file: Path, gain: float, row: Latency) -> str:
        """Why a file within the loss does not replace the best; "" when it does. Speed is compared side by side."""
        best = self.best and self.space.folder("candidates", self.best.candidate) / "model.onnx"
        than = "the best so far" if best else "the original"
        if self.goal.objective != "latency":
            ratio = gain / self.best_gain
            return "" if ratio > 1 + NOISE else f"Not smaller than {than}: {ratio:.2f}×."
        row = self.timed(best, file) if best else row
        spread = max(NOISE, uncertainty(row))
        return "" if row.speedup > 1 + spread else f"Not surely faster than {than}: {row.speedup:.2f}× ± {spread:.2f}."

    def timed(self, original: Path, file: Path) -> Latency:
        """At batch 1 on one thread."""
        return latency.compare(original, file, self.model.card, batches=(1,), threads=(1,))[0]

    def _note(self, recipe: Recipe, trial: Trial, row: Row) -> None:
        self.rows.append(row)
        if trial.kept:
            self.best, self.best_gain = row, trial.gain
        epochs = trains(recipe)
        if epochs:
            self.epoch_seconds = row.seconds / epochs
        else:
            self.slowest = max(self.slowest, row.seconds)
        found = {"best": self.best.candidate if self.best else "", "trials": [asdict(r) for r in self.rows]}
        self.report(self.done, f"{recipe.title}: {row.why}", **found)

    @property
    def done(self) -> float:
        return min(0.99, (self.clock() - self.began) / (self.end - self.began))

    def during(self, title: str, *, final: bool = False) -> Report:
        """A report whose fraction is that of the time. Raises TimeUp, but not from the first trial and if `final`."""
        must_end = final or not self.rows

        def heard(_: float, message: str, **numbers: object) -> None:
            if not must_end and self.left < 0:
                raise TimeUp
            self.report(self.done, f"{title}: {message}")

        return heard

    def training(self) -> Step | None:
        """Distillation for as many epochs as there is time for; None where there is no time or too few images."""
        train = self.data.train
        if len(train) < TRAINABLE:
            return None
        if self.epoch_seconds is None:
            self.epoch_seconds = estimate_epoch(self.model, self.data)
        epochs = min(MOST_EPOCHS, int(TRAINING_SHARE * (self.left - self.slowest) / self.epoch_seconds))
        if epochs < 1:
            return None
        shift = min(4, min(self.model.card.input_shape[1:]) // 8)
        gentle = {"learning_rate": GENTLE_RATE, "alpha": 1.0} if len(train) < FEW else {}
        return Step("distill", {"epochs": epochs, "shift": shift, **gentle})


def trains(recipe: Recipe) -> int:
    """Epochs of training in it."""
    return sum(int(getattr(step.record, "epochs", 0)) for step in recipe.active)


def judged(data: Data) -> Images:
    """The images that trials are judged on: validation, and without labels those of the training part too, from which
    nothing has learned."""
    part = data.validation
    if part.y is None and len(part) < JUDGED and len(data.train) < TRAINABLE:
        part = Images(np.concatenate([part.x, data.train.x]), None)
    return part.take(np.unique(np.linspace(0, len(part) - 1, JUDGED).round().astype(np.int64)))


def estimate_epoch(model: Model, data: Data) -> float:
    """Seconds: a forward pass of the original as teacher, and of its copy the same with twice that for gradients."""
    x = to_tensor(data.train.x[:PROBED], model.card)
    with torch.inference_mode():
        model.module(x[:8])
        began = time.perf_counter()
        model.module(x)
    return 4 * (time.perf_counter() - began) * len(data.train) / len(x)


def uncertainty(row: Latency) -> float:
    """Two standard errors of the median of the ratios: 1.25 σ / √n each, and σ is 10th to 90th percentile over 2.56."""
    return (row.speedup_high - row.speedup_low) / float(np.sqrt(row.runs))
