"""Run a recipe: copy, seed, apply step by step, verify after each, export, verify the file, measure the file.

Nothing that a step does reaches the model it was given, and no step sees the test images. Same recipe, model and data:
same bytes. The folder gets its `candidate.json` last, so a run that was stopped leaves no candidate.
"""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from core.candidate import Candidate, Scores
from core.cards import ModelCard
from core.catalog import CATALOG
from core.compare import read_logits
from core.engine import evaluate, latency
from core.engine.context import Report, silent
from core.engine.data import Data
from core.engine.formats import onnx_writer
from core.engine.formats.packed import pack
from core.engine.identity import candidate_id, fingerprint, identify
from core.engine.models import Model
from core.engine.progress import stages, titled
from core.engine.provenance import provenance
from core.engine.steps import Made, apply_step, check_fit, probe
from core.recipe import Recipe, Step
from core.workspace import write_json

SHARES = {"prune_channels": 4.0, "quantize": 4.0}  # of the progress bar; others 2
EPOCH = 8.0  # the same of one pass over the training images
EXPORT, ANSWERS, TIMING = 4.0, 3.0, 4.0


@dataclass(frozen=True)
class Built:
    """What a recipe made: `model.onnx` in `folder`, on which nothing is measured yet."""

    recipe: Recipe
    folder: Path
    made: Made
    parity: float  # largest |torch - ONNX| over the logits of real images, before file steps
    seconds: float

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"


def run(
    recipe: Recipe,
    model: Model,
    data: Data,
    folder: Path | str,
    *,
    report: Report = silent,
    ids: tuple[str, str] | None = None,
    baseline: Path | None = None,
) -> Candidate:
    """Make and measure the candidate; it and its files are in `folder` afterwards.

    `ids` are the model's and the data's names in a workspace. `baseline` holds the original file's answers on the test
    part, where they are known. Raises RecipeError, ModelError, DataError or what `report` raises.
    """
    making, measuring = stages(report, [sum(_steps(recipe)), sum(_scores(model, baseline))])
    built = build(recipe, model, data, folder, report=making)
    candidate = measure(built, model, data, report=measuring, ids=ids, baseline=baseline)
    report(1.0, "Done")
    return candidate


def build(recipe: Recipe, model: Model, data: Data, folder: Path | str, *, report: Report = silent) -> Built:
    """All steps and the export between them. The test part is not looked at. Raises as `run` does."""
    began, folder = time.perf_counter(), Path(folder)
    check_fit(model.card, data)
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    made, parts = Made(copy.deepcopy(model.module).eval()), stages(report, _steps(recipe))
    steps, file = recipe.active, folder / "model.onnx"

    def apply(number: int, step: Step) -> None:
        title = f"Step {number} of {len(steps)}, {CATALOG[step.technique].title}"
        apply_step(step, made, model, data, recipe.seed, folder / "scratch", titled(next(parts), title))

    for number, step in enumerate(steps, 1):
        if CATALOG[step.technique].acts_on == "model":
            apply(number, step)
    onnx_writer.export(made.module, model.card, file, next(parts), {"recipe": recipe.id})
    parity = onnx_writer.verify(made.module, model.card, file, probe(data, model.card).numpy())
    for number, step in enumerate(steps, 1):
        if CATALOG[step.technique].acts_on == "file":
            made.proto = onnx.load(file)
            apply(number, step)
            onnx_writer.save(made.proto, file)
    return Built(recipe, folder, made, parity, time.perf_counter() - began)


def measure(
    built: Built,
    model: Model,
    data: Data,
    *,
    report: Report = silent,
    ids: tuple[str, str] | None = None,
    baseline: Path | None = None,
) -> Candidate:
    """Every score of the built file on the whole test part; the candidate's record is then in its folder."""
    began, recipe, file = time.perf_counter(), built.recipe, built.file
    ids = ids or (identify(model.card.name, fingerprint(model)), identify(data.card.name, data.card.hash))
    parts = stages(report, _scores(model, baseline))
    original = _original_file(model, built.folder, parts)
    logits, scores = _score(original, file, baseline, model.card, data, parts)
    scores = replace(scores, packed_bytes=pack(file))
    candidate = Candidate(
        id=candidate_id(recipe, *ids),
        model=ids[0],
        data=ids[1],
        recipe=recipe.to_yaml(),
        title=recipe.title,
        scores=scores,
        skipped=tuple(built.made.skipped),
        curves=built.made.curves,
        layer_error=evaluate.layer_error(original, file, data.calibration, model.card),
        parity=built.parity,
        seconds=built.seconds + time.perf_counter() - began,
        provenance=provenance(recipe, original, file, data),
    )
    _keep(candidate, logits, built.folder)
    return candidate


def _score(
    original: Path, file: Path, baseline: Path | None, card: ModelCard, data: Data, parts: Iterator[Report]
) -> tuple[evaluate.Logits, Scores]:
    """The candidate's answers on the test part, and its scores against the original's."""
    before = _known(baseline)
    if before is None:
        before = evaluate.predict(original, data.test, card, titled(next(parts), "Answers of the original"))
    logits = evaluate.predict(file, data.test, card, titled(next(parts), "Answers of the candidate"))
    rows = latency.compare(original, file, card, report=next(parts))
    return logits, evaluate.score(file, logits, before, data.test, card, rows)


def measure_original(
    file: Path, card: ModelCard, data: Data, *, report: Report = silent
) -> tuple[Scores, evaluate.Logits]:
    """The original file's own scores on the test part, and its logits; its speed-up is 1 within the machine's noise."""
    check_fit(card, data)
    answers, timing = stages(report, [ANSWERS, TIMING])
    logits = evaluate.predict(file, data.test, card, titled(answers, "Answers of the original"))
    rows = latency.compare(file, file, card, report=timing)
    return evaluate.score(file, logits, logits, data.test, card, rows), logits


def _steps(recipe: Recipe) -> list[float]:
    """How long each stage of making takes, roughly, in the order in which they come."""
    steps = [EPOCH * getattr(s.record, "epochs", 0) or SHARES.get(s.technique, 2.0) for s in recipe.active]
    model_steps = sum(CATALOG[s.technique].acts_on == "model" for s in recipe.active)
    return [*steps[:model_steps], EXPORT, *steps[model_steps:]]


def _scores(model: Model, baseline: Path | None) -> list[float]:
    """The same for measuring."""
    original = [] if model.file else [EXPORT]
    answers = [ANSWERS] if baseline and baseline.exists() else [ANSWERS, ANSWERS]
    return [*original, *answers, TIMING]


def _known(baseline: Path | None) -> evaluate.Logits | None:
    return read_logits(baseline) if baseline and baseline.exists() else None


def _original_file(model: Model, folder: Path, parts: Iterator[Report]) -> Path:
    """The file that candidates are compared with: the one that came, or our export of the untouched network."""
    if model.file is not None:
        return model.file
    file = folder / "scratch" / "original.onnx"
    onnx_writer.export(model.module, model.card, file, next(parts))
    return file


def _keep(candidate: Candidate, logits: evaluate.Logits, folder: Path) -> None:
    """Write everything that belongs to the candidate, its record last."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    evaluate.save_predictions(folder / "predictions.npz", logits)
    part = folder / f"recipe.yaml.{os.getpid()}.part"
    part.write_text(candidate.recipe, encoding="utf-8")
    os.replace(part, folder / "recipe.yaml")
    write_json(folder / "candidate.json", candidate.to_json())
