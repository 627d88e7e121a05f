"""Tier 2: measure whole-network plans, so that the forecast knows what a sum of KL divergences costs in accuracy.

Each is measured on the validation images, beside the original's answers on the same images, and saved at once: first
with the settings alone, written into the weights, then as many again with what remains repaired, by running the
techniques themselves. Of a network that was probably trained on those images, what unseen ones are expected to lose is
kept as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.engine.calibration_plans import COUNT, calibration_plans, reach, scouts, steps_for
from core.engine.context import Report, silent
from core.engine.data import Data
from core.engine.judge import (
    Unseen,
    counted_loss,
    expected_loss,
    remembered,
    unseen_changes,
    unseen_losses,
)
from core.engine.models import Model
from core.engine.perturb import Network, perturb, swapped
from core.engine.steps import Made, apply_step
from core.engine.surgery import copy_model
from core.engine.telling import answers
from core.layers import Profile
from core.measured_plans import DONE, JUDGE
from core.plan import key_levels, plan_rows
from core.recipe import Step
from core.sensitivity_table import Plan, SensitivityTable, append_lines, read_lines, sum_kl

MENDING = 8  # times as long as a plan that is not repaired, for the progress bar


def measure_plan(
    network: Network, plan: Plan, x: Tensor, y: Tensor | None, before: Tensor, unseen: Unseen | None = None
) -> dict[str, float]:
    """What a plan loses on images x (n, c, h, w) whose original answers are `before` (n, classes)."""
    with swapped(network.module, perturb(network, plan)):
        return lost(answers(network.module, x), y, before, unseen)


def lost(after: Tensor, y: Tensor | None, before: Tensor, unseen: Unseen | None = None) -> dict[str, float]:
    """Shares of images, from logits (n, classes): answers that changed and, with labels, right answers that went.

    Counted, and as expected from how far margins moved, which varies less from one set of images to another; and so
    expected of `unseen` images.
    """
    old, new = before.numpy(), after.numpy()
    shares = {}
    for name, wanted in [("agreement", None)] + ([] if y is None else [("accuracy", y.numpy())]):
        shares[name] = counted_loss(old, new, wanted)
        shares[f"expected_{name}"] = expected_loss(old, new, wanted)
    if unseen and y is not None:
        shares["unseen_agreement"] = float(unseen_changes(old, new, unseen).mean())
        shares["unseen_accuracy"] = float(unseen_losses(old, new, unseen).mean())
    return shares


def mend(steps: Sequence[Step], model: Model, data: Data, folder: Path) -> nn.Module:
    """The network that the techniques make, with what remains repaired."""
    made = Made(copy_model(model.module))
    for step in steps:
        apply_step(step, made, model, data, 0, folder)
    return made.module


def calibrate(
    network: Network,
    table: SensitivityTable,
    x: Tensor,
    y: Tensor | None,
    path: Path,
    about: Mapping[str, object],
    report: Report = silent,
    subject: tuple[Model, Data] | None = None,
    unseen: Unseen | None = None,
) -> list[Mapping[str, Any]]:
    """Measure what of the calibration plans is not in `path` yet; a file of other circumstances is begun anew.

    Returns the lines of these plans; the file may hold those of an earlier version as well. With `subject`, the model
    and data that the techniques run on, repaired plans too. `unseen` is asked where the network was probably trained
    on x.
    """
    before = answers(network.module, x)
    head = _head({**about, "judge": JUDGE}, before, y, unseen)
    if "remembered" not in head:
        unseen = None
    rows, count = _begun(path, head), 2 * COUNT if subject else COUNT
    for number, (plan, repaired) in enumerate(_plans(network.profile, table, rows, subject is not None), 1):
        if _found(rows, plan, repaired):
            continue
        kind = "repaired plan" if repaired else "plan"
        report(_time(number - 1) / _time(count), f"Measuring whole-network {kind} {number} of {count}")
        if subject and repaired:
            mended = mend(steps_for(network.profile, plan), *subject, path.parent / "scratch")
            found = lost(answers(mended, x), y, before, unseen)
        else:
            found = measure_plan(network, plan, x, y, before, unseen)
        row: dict[str, Any] = {"plan": plan_rows(plan), "repaired": repaired, "kl": sum_kl(table, plan)[0]}
        row |= {"drop": found, "images": len(x)} | ({"unseen": len(unseen.margins)} if unseen else {})
        append_lines(path, [row])
        rows.append(row)
    _finish(path, rows)
    report(1.0, "Forecast calibrated")
    own = _plans(network.profile, table, rows, subject is not None)
    return [line for plan, repaired in own if (line := _found(rows, plan, repaired))]


def _time(plans: int) -> int:
    """What the first so many plans take, in those of one that is not repaired."""
    return min(plans, COUNT) + MENDING * max(0, plans - COUNT)


def _plans(
    profile: Profile, table: SensitivityTable, rows: Sequence[Mapping[str, Any]], mended: bool
) -> Iterator[tuple[Plan, bool]]:
    """(plan, whether it is repaired). `rows` hold the scouts when the others are asked for."""
    first = scouts(profile, table)
    yield from ((plan, False) for plan in first)
    known = [row for plan in first if (row := _found(rows, plan, False))]
    changed = [(row["kl"], row["drop"].get("unseen_agreement", row["drop"]["agreement"])) for row in known]
    yield from ((plan, False) for plan in calibration_plans(profile, table, False, reach(changed), first))
    if mended:
        yield from ((plan, True) for plan in calibration_plans(profile, table.repaired, True))


def _found(rows: Sequence[Mapping[str, Any]], plan: Plan, repaired: bool) -> Mapping[str, Any] | None:
    """The line of a plan; None where it is not measured yet."""
    wanted = key_levels(plan_rows(plan))
    return next((r for r in rows[1:] if r["repaired"] == repaired and key_levels(r["plan"]) == wanted), None)


def _head(about: Mapping[str, object], before: Tensor, y: Tensor | None, unseen: Unseen | None) -> dict[str, object]:
    """The circumstances, and how often the original is right on images that it was probably trained on."""
    right = None if y is None else y.numpy()
    if right is None or not remembered(before.numpy(), right, unseen):
        return {"about": dict(about)}
    return {"about": dict(about), "remembered": float((before.numpy().argmax(1) == right).mean())}


def _begun(path: Path, head: dict[str, object]) -> list[dict[str, Any]]:
    """The lines that are there, the first of them the circumstances; a file of others is begun anew."""
    rows = read_lines(path)
    if not rows or {key: value for key, value in rows[0].items() if key != DONE} != head:
        path.unlink(missing_ok=True)
        rows = [head]
        append_lines(path, rows)
    return rows


def _finish(path: Path, rows: list[dict[str, Any]]) -> None:
    """Say in the first line that nothing is left to measure."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    append_lines(part, [rows[0] | {DONE: True}, *rows[1:]])
    os.replace(part, path)
