"""Measure the sensitivity table: layer × technique × level, coarse to fine, each cell saved as it is measured.

Tier 0 (`rank_cells`): full empirical Fisher E[(gradient · change)²] (for its limits: Kunstner et al. 2019) and the
relative weight error. The gradient of each image is the product of a layer's input patches and its output gradient, so
one forward and one backward pass over all images serve every cell.

Tier 1 (`measure_cells`): KL divergence of the answers from the original's on the unlabelled images that tell most
(`core/engine/telling.py`), both softened by a temperature as in distillation (Hinton et al. 2015), the suffix alone run
again. Softened, a few doubtful images weigh less, and what several settings do together is nearer to the sum of what
each does alone. It stops when `report` raises Cancelled and goes on where it, or a killed process, stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.engine.context import Report, silent
from core.engine.fisher import Altered, Setting, Told, parcels, rank_cells, second_order, unheard
from core.engine.perturb import Network, consumers, perturb, repair, splittable
from core.engine.replay import Replay
from core.engine.telling import answers, corrected, telling
from core.layers import Profile
from core.sensitivity_table import (
    LEVELS,
    Cell,
    Key,
    SensitivityTable,
    append_lines,
    read_lines,
    read_table,
    row_of,
)

MEMORY_BYTES = 1 << 30  # most that the kept activations may take; larger networks are measured on fewer images
SMALLEST_BATCH = 8
IMAGES, LEAST_IMAGES = 32, 6  # 28 to 40 rank the cells of two ResNet-20 alike, 6 to 15 those of ResNet-56
LAYERS = 22  # a deeper network is measured on fewer images, so that time grows with its layers, not with their square
FORESEEN = 96  # images on which gradients alone foresee the KL
TEMPERATURE = 2.0  # that the answers are softened by
RANKED = 96  # images of tier 0; more rank no better
VERSION = 5  # of what a cell means: tables of another are measured anew

Control = tuple[Tensor, float]  # the KL that gradients foresee: on the images of tier 1 (m,), in the mean of more


@dataclass(frozen=True)
class Sample:
    """The images that tier 1 looks at, m of n."""

    replay: Replay
    labels: Tensor | None  # (m,)
    weight: Tensor  # (m,), summing to 1
    more: Tensor | None  # (m + k, c, h, w) these and k others; None where all n images are looked at
    logits: Tensor  # (m + k, classes)
    of_more: Tensor  # (k,), summing to 1


def settings(profile: Profile) -> list[tuple[Key, float]]:
    """Every ((layer or group, technique), level) worth measuring, coarse levels first."""
    found = []
    for turn in range(max(map(len, LEVELS.values()))):
        for technique, levels in LEVELS.items():
            if turn < len(levels):
                found += [((name, technique), levels[turn]) for name in rows_of(profile, technique)]
        if turn == 0:
            found += [
                ((g.name, "prune_channels"), 1.0) for g in profile.groups if g.branch and consumers(profile, g.name)
            ]
    return found


def rows_of(profile: Profile, technique: str) -> list[str]:
    """The layers, or for prune_channels the groups, that a technique can act on."""
    if technique == "prune_channels":
        return [g.name for g in profile.groups if not g.blocked and g.channels > 1 and consumers(profile, g.name)]
    return [x.name for x in (splittable(profile) if technique == "factorize" else profile.tunable)]


def measure_cells(
    network: Network,
    x: Tensor,
    y: Tensor | None,
    path: Path,
    about: Mapping[str, Any],
    report: Report = silent,
    techniques: Sequence[str] = tuple(LEVELS),
) -> SensitivityTable:
    """Both tiers into `path` and back as a table. What is already there, for the same `about`, is not measured again.

    Tier 1 is measured for `techniques` alone; another time adds others. It picks IMAGES of x (n, c, h, w); fewer for
    deep networks, and when their activations would not fit in MEMORY_BYTES.
    """
    table = _begun(network, x, y, path, about, report)
    todo = [row for row in settings(network.profile) if row[0][1] in techniques]
    known = {key for key, cell in table.cells.items() if cell.kl is not None}
    left = [(key, level) for key, level in todo if (*key, level) not in known]
    if not left:
        return table
    sample = draw_sample(network, x, y, report)
    done = len(todo) - len(left)

    def told(message: str) -> None:
        report(done / len(todo), message)

    for parcel in parcels(settings_of(network, left, told)):
        controls = foresee(network, sample, [each for setting in parcel for each in setting.altered], told)
        for setting in parcel:
            told(f"Measuring {setting.key[0]}, {setting.key[1]} at {setting.level:g}")
            append_lines(path, [row_of(measure_cell(sample, setting, controls))])
            done += 1
    report(1.0, "Sensitivity measured")
    return _begun(network, x, y, path, about, report)


def _begun(
    network: Network, x: Tensor, y: Tensor | None, path: Path, about: Mapping[str, Any], report: Report
) -> SensitivityTable:
    """What `path` holds of these circumstances; tier 0 at least."""
    rows = read_lines(path)
    if not rows or any(rows[0].get(k) != v for k, v in about.items()):
        path.unlink(missing_ok=True)
        append_lines(path, [dict(about)])
        report(0.0, "Ranking layers")
        seen, cells = None if y is None else y[:RANKED], settings(network.profile)
        append_lines(path, map(row_of, rank_cells(network, x[:RANKED], seen, cells)))
    table = read_table(path)
    assert table is not None
    return table


def enough_images(profile: Profile) -> int:
    """As many as let the time of all cells grow with the layers."""
    return max(LEAST_IMAGES, min(IMAGES, IMAGES * LAYERS // max(1, len(profile.tunable))))


def measure_cell(sample: Sample, setting: Setting, controls: Iterator[Control | None]) -> Cell:
    """One row of the table, tier 1. `controls` gives that of each time the setting is applied."""
    replay, found = sample.replay, []
    for weights, biases in setting.altered:
        found.append(compare(replay, *replay.run(weights, biases), sample.labels, sample.weight, next(controls)))
    layer, technique = setting.key
    repaired = found[1]["kl"] if len(found) > 1 else None
    return Cell(layer, technique, setting.level, kl_repaired=repaired, **found[0])


def compare(
    replay: Replay,
    logits: Tensor,
    features: Tensor,
    y: Tensor | None,
    weight: Tensor | None = None,
    control: Control | None = None,
) -> dict[str, float]:
    """KL of softened answers (nats), SQNR of logits (dB, at most 99), cosine of features; accuracy loss with labels.

    Means over the images, each with its `weight` (n,), which sum to 1; all alike without. With a `control` the KL is
    that of more images.
    """
    w = torch.full((len(logits),), 1 / len(logits)) if weight is None else weight
    after, before = ((answer / TEMPERATURE).log_softmax(1) for answer in (logits, replay.logits))
    kl = F.kl_div(after, before, reduction="none", log_target=True).sum(1)
    noise = (w @ (logits - replay.logits).square().sum(1)).clamp_min(1e-30)
    measures = {
        "kl": max(0.0, corrected(kl, w, *control) if control else float(w @ kl)),
        "sqnr_db": min(99.0, float(10 * ((w @ replay.logits.square().sum(1)) / noise).log10())),
        "cosine": float(w @ F.cosine_similarity(features.flatten(1), replay.features.flatten(1))),
    }
    if y is not None:
        before_right, after_right = ((answer.argmax(1) == y).float() for answer in (replay.logits, logits))
        measures["accuracy_loss"] = float(w @ (before_right - after_right))
    return measures


def draw_sample(network: Network, x: Tensor, y: Tensor | None, report: Report = silent) -> Sample:
    """The images that tell most, and FORESEEN others."""
    module, layers = network.module, {layer.name for layer in network.profile.weighing}
    one = Replay(module, x[:1], layers).kept_bytes
    few = min(enough_images(network.profile), max(SMALLEST_BATCH, MEMORY_BYTES // max(1, one)))
    logits = answers(module, x, report)
    index, weight = telling(logits, few, TEMPERATURE)
    others, of_more = telling(logits, FORESEEN, TEMPERATURE)
    at = torch.cat([index, others])
    more = x[at] if len(index) < len(x) else None
    return Sample(Replay(module, x[index], layers), None if y is None else y[index], weight, more, logits[at], of_more)


def foresee(
    network: Network, sample: Sample, altered: Sequence[Altered], told: Told = unheard
) -> Iterator[Control | None]:
    """What gradients foresee of each, in their order."""
    if sample.more is None:
        return iter([None] * len(altered))
    found = second_order(network, sample.more, sample.logits, altered, TEMPERATURE, told)
    here, there = found.tensor_split([len(sample.weight)])
    return zip(here.T, (sample.of_more @ there).tolist(), strict=True)


def settings_of(network: Network, cells: Iterable[tuple[Key, float]], told: Told = unheard) -> Iterator[Setting]:
    """What each cell alters. `told` hears every second of layers that are solved again."""
    spoken = time.monotonic()
    for key, level in cells:
        altered: tuple[Altered, ...] = ((perturb(network, {key: level}), {}),)
        if key[1] == "prune_channels":
            if time.monotonic() > spoken + 1:
                told(f"Solving again what reads {key[0]}")
                spoken = time.monotonic()
            altered = (*altered, repair(network, key[0], level))
        yield Setting(key, level, altered)
