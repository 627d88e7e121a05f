"""Operator times of a model on this machine, and the affine step from their sum to whole files: float and int8.

The original and three pruned copies, as the technique makes them and as they are exported, are timed whole; the same
four again in int8. It takes less than a minute, so it is done or not and never goes on in the middle.

    models/<id>/latency-<machine id>.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from core.engine.context import Report, silent
from core.engine.data import Data
from core.engine.formats import onnx_writer
from core.engine.latency_table import measure_table, operators_of, time_file, with_affine
from core.engine.models import Model
from core.engine.progress import part
from core.engine.steps import Made, apply_step
from core.engine.surgery import copy_model
from core.latency_table import INTEGER, LatencyTable
from core.layers import Profile
from core.machine import processor
from core.recipe import Recipe, Step
from core.recipe_latency import layer_times

RATIOS = (0.25, 0.5, 0.75)  # of the channels, removed from the models that are timed whole
SECONDS = 0.02  # on each operator in each round; its fastest run counts
ROUNDS = 2  # far apart in time, so that a busy moment of the machine spoils none of them
WHOLE_SECONDS = 0.5  # on each whole model in each round
LEAST_SLOPE = 0.3  # alone, an operator takes longer than inside a model, but never three times as long
INT8 = Step("quantize", {"images": 64, "equalize": False, "compensate": False, "correct": False})  # alike in time


def measure_latency(model: Model, data: Data, profile: Profile, report: Report = silent) -> LatencyTable:
    """The table of a model, its affine step fitted. Operators and whole models take turns."""
    operators = operators_of(profile)
    with tempfile.TemporaryDirectory() as folder:
        files = list(_whole_models(model, data, profile, Path(folder), part(report, 0.0, 0.3)))
        paths = [file for _, file in files] + ([model.file] if model.file else [])
        x = np.zeros((1, *model.card.input_shape), np.float32)
        whole, tables = np.full(len(paths), np.inf), []
        for number in range(ROUNDS):
            stage = part(report, 0.3 + 0.7 * number / ROUNDS, 0.3 + 0.7 * (number + 1) / ROUNDS)
            tables.append(measure_table(operators, seconds=SECONDS, report=stage))
            times = [time_file(file, x, seconds=WHOLE_SECONDS) for file in paths]
            whole = np.minimum(whole, times)
    fastest = {key: min(t.times[key] for t in tables) for key in operators}
    original = float(whole[-1]) if model.file else None
    table = replace(tables[0], times=fastest, original_ms=original, machine=processor())
    return fit_whole(table, profile, [recipe for recipe, _ in files], whole[: len(files)])


def fit_whole(
    table: LatencyTable, profile: Profile, recipes: Sequence[Recipe], whole_ms: NDArray[np.float64]
) -> LatencyTable:
    """The affine step from the float models; integer operators are then scaled so that it holds for int8 models too.

    Inside a model an integer operator also pays for what surrounds it, as sums and pools between integers. Where the
    models take nearly the same time, overheads hide the slope: then one factor stands for all.
    """
    sums = np.array([sum(layer_times(profile, recipe, table).values()) for recipe in recipes])
    integer = np.array([any(step.technique == "quantize" for step in recipe.active) for recipe in recipes])
    table = with_affine(table, sums[~integer], whole_ms[~integer])
    if table.slope < LEAST_SLOPE:
        table = with_affine(table, [sums[~integer].mean()], [whole_ms[~integer].mean()])
    if not integer.any():
        return table
    alone = (whole_ms[integer] - table.intercept) / table.slope  # the sums that the affine step asks for
    scale = float((alone / sums[integer]).mean())
    times = {key: ms * scale if key.type == INTEGER else ms for key, ms in table.times.items()}
    return replace(table, times=times)


def _prunings(profile: Profile) -> list[tuple[Step, ...]]:
    """What is removed from the models that are timed whole: nothing, channels, and every second residual branch."""
    values = {"repair": False, "reestimate": False}
    branches = [group.name for group in profile.groups if group.branch][::2]
    shares = [(Step("prune_channels", {"ratio": ratio, **values}),) for ratio in RATIOS]
    short = Step("prune_channels", {"ratio": 0.0, **values}, dict.fromkeys(branches, 1.0))
    return [(), *shares, *([(short,)] if branches else [])]


def _whole_models(
    model: Model, data: Data, profile: Profile, folder: Path, report: Report
) -> Iterator[tuple[Recipe, Path]]:
    """The original and its pruned copies, float and int8; each with its recipe."""
    prunings = _prunings(profile)
    for number, steps in enumerate(prunings):
        report(number / len(prunings), f"Exporting model {number + 1} of {len(prunings)} to time")
        made = Made(copy_model(model.module))
        for step in steps:
            apply_step(step, made, model, data, 0, folder / "scratch")
        file = folder / f"float-{number}.onnx"
        onnx_writer.export(made.module, model.card, file)
        yield Recipe(steps), file
        made.proto = onnx.load(file)
        apply_step(INT8, made, model, data, 0, folder / "scratch")
        onnx_writer.save(made.proto, folder / f"int8-{number}.onnx")
        yield Recipe((*steps, INT8)), folder / f"int8-{number}.onnx"
