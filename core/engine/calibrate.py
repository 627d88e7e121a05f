"""Tier 2: measure whole-network plans, so that the forecast knows what a sum of KL divergences costs in accuracy.

Half of the plans lie on the allocation's own path, where users will look; the other half are random mixes of all
techniques, spread evenly over the logarithm of predicted KL. Each is measured on the validation images, beside the
original's answers on the same images, and saved at once: first with the settings alone, written into the weights, then
as many again with what remains repaired, by running the techniques themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.allocate import Allocation
from core.choices import Choices
from core.engine.context import Report, silent
from core.engine.data import Data
from core.engine.models import Model
from core.engine.perturb import Network, perturb, swapped
from core.engine.sensitivity import rows_of
from core.engine.steps import Made, apply_step
from core.engine.surgery import copy_model
from core.forecast import sum_kl
from core.layers import Profile
from core.plan import key_levels, plan_rows, steps_of
from core.sensitivity_table import LEVELS, Key, Plan, SensitivityTable, append_lines, read_lines

COUNT = 16  # fewer leave the interval useless
RANGE = (0.004, 2.0)  # summed KL in nats: from below what accuracy can show to a ruined network
MENDED_RANGE = (0.02, 8.0)  # repaired networks stand more
MENDED = ("prune_channels", "factorize", "prune_weights")  # the techniques that repair
MENDING = 8  # times as long as a plan that is not repaired, for the progress bar
SHARE_LEFT = 0.4  # of the layers that a random plan leaves alone, per technique group
BATCH = 64  # images at once: their activations stay in the cache


def random_plan(
    profile: Profile,
    table: SensitivityTable,
    kl: float,
    rng: np.random.Generator,
    techniques: Sequence[str] = tuple(LEVELS),
) -> dict[Key, float]:
    """A mix of techniques over random layers and groups, whose summed KL is near `kl` (nats) and not above it."""
    rows = [(name, technique) for technique in techniques for name in rows_of(profile, technique)]
    rng.shuffle(rows)
    plan: dict[Key, float] = {}
    taken: set[str] = set()
    left = kl
    for name, technique in rows:
        key = (str(name), str(technique))
        if (key[0] in taken and technique != "quantize") or rng.random() < SHARE_LEFT:
            continue
        share = left * rng.beta(1, 4)
        fitting = [x for x in LEVELS[technique] if (table.kl(*key, x) or np.inf) <= share]
        if fitting:
            plan[key] = max(fitting, key=lambda x: table.kl(*key, x) or 0.0)
            taken.add(key[0])
            left -= table.kl(*key, plan[key]) or 0.0
    return plan


def path_plans(profile: Profile, table: SensitivityTable, count: int, mended: bool = False) -> list[Plan]:
    """Plans of the allocation's own: falling MACs by channels; falling bytes by bits, or by rank where they mend."""
    plans: list[Plan] = []
    searches = (("macs", "prune_channels"), ("weight_bytes", "factorize" if mended else "quantize"))
    low, high = MENDED_RANGE if mended else RANGE
    for number, (kind, technique) in enumerate(searches):
        wanted = count // 2 if number == 0 else count - len(plans)
        if not rows_of(profile, technique):
            continue
        path = Choices(profile, table, {technique: LEVELS[technique]}).front(kind, 256)
        inside = [a for a in path if low <= a.loss <= high]
        plans += [a.levels for a in spread([a.loss for a in inside], inside, wanted)]
    return plans


def spread(losses: Sequence[float], things: Sequence[Allocation], count: int) -> list[Allocation]:
    """`count` of the things, evenly spaced in the logarithm of their loss."""
    if len(things) <= count:
        return list(things)
    x = np.log(losses)
    aims = np.linspace(x.min(), x.max(), count)
    return [things[i] for i in dict.fromkeys(int(np.abs(x - aim).argmin()) for aim in aims)]


def calibration_plans(
    profile: Profile, table: SensitivityTable, count: int = COUNT, mended: bool = False, seed: int = 0
) -> list[Plan]:
    """The same plans every time, for the same table."""
    rng = np.random.default_rng(seed)
    plans = path_plans(profile, table, count // 2, mended)
    aims = np.geomspace(*(MENDED_RANGE if mended else RANGE), count - len(plans))
    techniques = MENDED if mended else tuple(LEVELS)
    return plans + [random_plan(profile, table, float(aim), rng, techniques) for aim in aims]


def measure_plan(network: Network, plan: Plan, x: Tensor, y: Tensor | None, before: Tensor) -> dict[str, float]:
    """What a plan loses on images x (n, c, h, w) whose original answers are `before` (n,): agreement, and accuracy."""
    with swapped(network.module, perturb(network, plan)):
        return lost(answers(network.module, x), y, before)


def lost(after: Tensor, y: Tensor | None, before: Tensor) -> dict[str, float]:
    """Shares of images (n,): answers that changed and, with labels, right answers that went."""
    shares = {"agreement": float((after != before).double().mean())}
    if y is not None:
        shares["accuracy"] = float((before == y).double().mean() - (after == y).double().mean())
    return shares


def mend(plan: Plan, model: Model, data: Data, folder: Path) -> nn.Module:
    """The network that the techniques make of a plan, with what remains repaired."""
    made = Made(copy_model(model.module))
    for step in steps_of(plan):
        apply_step(step, made, model, data, 0, folder)
    return made.module


def answers(module: nn.Module, x: Tensor) -> Tensor:
    """The class of every image (n,), in evaluation mode."""
    module.eval()
    with torch.inference_mode():
        return torch.cat([module(part).argmax(1) for part in torch.split(x, BATCH)])


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
    todo = [(plan, False) for plan in calibration_plans(network.profile, table)]
    if subject:
        todo += [(plan, True) for plan in calibration_plans(network.profile, table, mended=True)]
    rows = read_lines(path)
    if not rows or rows[0].get("about") != dict(about):
        path.unlink(missing_ok=True)
        rows = [{"about": dict(about), "plans": len(todo)}]
        append_lines(path, rows)
    done = {(frozenset(key_levels(row["plan"]).items()), row["repaired"]) for row in rows[1:]}
    before = answers(network.module, x)
    for number, (plan, mended) in enumerate(todo):
        settings = plan_rows(plan)
        if (frozenset(key_levels(settings).items()), mended) in done:
            continue
        kind = "repaired plan" if mended else "plan"
        cost = [MENDING if mended else 1 for _, mended in todo]
        report(sum(cost[:number]) / sum(cost), f"Measuring whole-network {kind} {number + 1} of {len(todo)}")
        if subject and mended:
            found = lost(answers(mend(plan, *subject, path.parent / "scratch"), x), y, before)
        else:
            found = measure_plan(network, plan, x, y, before)
        row = {"plan": settings, "repaired": mended, "kl": sum_kl(table, plan)[0], "drop": found, "images": len(x)}
        append_lines(path, [row])
    report(1.0, "Forecast calibrated")
