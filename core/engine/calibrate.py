"""Tier 2: measure whole-network plans, so that the forecast knows what a sum of KL divergences costs in accuracy.

Each is measured on the validation images, beside the original's answers on the same images, and saved at once: first
with the settings alone, written into the weights, then as many again with what remains repaired, by running the
techniques themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.engine.calibration_plans import COUNT, ask_plans
from core.engine.context import Report, silent
from core.engine.data import Data
from core.engine.judge import counted_loss, expected_loss
from core.engine.models import Model
from core.engine.perturb import Network, perturb, swapped
from core.engine.steps import Made, apply_step
from core.engine.surgery import copy_model
from core.forecast import sum_kl
from core.plan import key_levels, plan_rows, steps_of
from core.sensitivity_table import Key, Plan, SensitivityTable, append_lines, read_lines

MENDING = 8  # times as long as a plan that is not repaired, for the progress bar
BATCH = 64  # images at once: their activations stay in the cache


def measure_plan(network: Network, plan: Plan, x: Tensor, y: Tensor | None, before: Tensor) -> dict[str, float]:
    """What a plan loses on images x (n, c, h, w) whose original answers are `before` (n, classes)."""
    with swapped(network.module, perturb(network, plan)):
        return lost(answers(network.module, x), y, before)


def lost(after: Tensor, y: Tensor | None, before: Tensor) -> dict[str, float]:
    """Shares of images, from logits (n, classes): answers that changed and, with labels, right answers that went.

    Counted, and as expected from how far margins moved, which varies less from one set of images to another.
    """
    old, new = before.numpy(), after.numpy()
    shares = {}
    for name, wanted in [("agreement", None)] + ([] if y is None else [("accuracy", y.numpy())]):
        shares[name] = counted_loss(old, new, wanted)
        shares[f"expected_{name}"] = expected_loss(old, new, wanted)
    return shares


def mend(plan: Plan, model: Model, data: Data, folder: Path) -> nn.Module:
    """The network that the techniques make of a plan, with what remains repaired."""
    made = Made(copy_model(model.module))
    for step in steps_of(plan):
        apply_step(step, made, model, data, 0, folder)
    return made.module


def answers(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of every image (n, classes), in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        return torch.cat([module(part) for part in torch.split(x, BATCH)])


class Calibrating:
    """Plans that are measured, on images x (n, c, h, w) with labels y where there are any; each is kept at once."""

    def __init__(
        self,
        network: Network,
        table: SensitivityTable,
        x: Tensor,
        y: Tensor | None,
        path: Path,
        subject: tuple[Model, Data] | None,
    ) -> None:
        self.network, self.table, self.x, self.y, self.path, self.subject = network, table, x, y, path, subject
        self.before = answers(network.module, x)
        self.known = {(_settings(row["plan"]), row["repaired"]): row["drop"] for row in read_lines(path)[1:]}

    def changed(self, plan: Plan, mended: bool) -> float:
        """The share of answers that a plan changes, from the file where it is there."""
        settings = plan_rows(plan)
        key = _settings(settings), mended
        if key not in self.known:
            if self.subject and mended:
                after = answers(mend(plan, *self.subject, self.path.parent / "scratch"), self.x)
                self.known[key] = lost(after, self.y, self.before)
            else:
                self.known[key] = measure_plan(self.network, plan, self.x, self.y, self.before)
            row = {"plan": settings, "repaired": mended, "kl": sum_kl(self.table, plan)[0], "drop": self.known[key]}
            append_lines(self.path, [{**row, "images": len(self.x)}])
        return float(self.known[key]["agreement"])


def _settings(rows: Sequence[Sequence[object]]) -> frozenset[tuple[Key, float]]:
    return frozenset(key_levels(rows).items())


def calibrate(
    network: Network,
    table: SensitivityTable,
    x: Tensor,
    y: Tensor | None,
    path: Path,
    about: Mapping[str, object],
    report: Report = silent,
    subject: tuple[Model, Data] | None = None,
) -> None:
    """Measure what of the calibration plans is not in `path` yet; a file of other circumstances is begun anew.

    With `subject`, the model and data that the techniques themselves run on, repaired plans too.
    """
    costs = {False: 1, True: MENDING} if subject else {False: 1}
    rows = read_lines(path)
    if not rows or rows[0].get("about") != dict(about):
        path.unlink(missing_ok=True)
        append_lines(path, [{"about": dict(about), "plans": COUNT * len(costs)}])
    calibrating, done = Calibrating(network, table, x, y, path, subject), 0
    for mended, cost in costs.items():
        asking = ask_plans(network.profile, table.repaired if mended else table, mended)
        kind, plan = "repaired plan" if mended else "plan", next(asking, None)
        number = 0
        while plan is not None:
            number += 1
            report(done / (COUNT * sum(costs.values())), f"Measuring whole-network {kind} {number} of {COUNT}")
            changed, done = calibrating.changed(plan, mended), done + cost
            try:
                plan = asking.send(changed)
            except StopIteration:
                plan = None
    _count(path)
    report(1.0, "Forecast calibrated")


def _count(path: Path) -> None:
    """Say that there are no more plans: a tiny network has not as many as were announced."""
    head, *rows = read_lines(path)
    if len(rows) < head["plans"]:
        whole = path.with_suffix(".part")
        whole.unlink(missing_ok=True)
        append_lines(whole, [{**head, "plans": len(rows)}, *rows])
        whole.replace(path)
