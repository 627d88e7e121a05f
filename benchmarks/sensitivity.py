"""Sensitivity: tiers 0 and 1 against exact evaluation, in rank and in time, beside the ways other tools sweep layers.

    python -m benchmarks.sensitivity MODEL.onnx DATA.npz [--images 8000] [--minutes 60] [--every 1] [--sweep]

DATA.npz holds x_test and y_test. The exact answer is the change of cross-entropy on `--images` labelled images: on
2,000, whose halves rank the cells of ResNet-56 with a correlation of 0.57, a score that knew the truth would reach
0.85. Tier 0 sees 96 others, and tier 1 picks its own of those held back. Times are processor seconds, so that a busy
machine changes no ratio, and of sweeps over 2,000 images.
Sweeps are timed by turns on every tenth cell and scaled to the whole table: NNI and Distiller mask one layer and
test the whole network; AIMET does so for ten ratios of every layer; torch-pruning cuts a copy and tests that.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.subjects import Subject, add_subject, open_subject
from core.engine.data import to_tensor
from core.engine.fisher import rank_cells
from core.engine.perturb import least_important, perturb, swapped
from core.engine.replay import Replay
from core.engine.sensitivity import compare, draw_sample, enough_images, foresee, measure_cells, settings
from core.sensitivity_table import LEVELS

RESULTS = Path(__file__).parent / "results"
CHUNK = 100  # images at once in the exact sweep
TOLD = 2000  # images of the sweeps whose times are told


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def exact_sweep(subject: Subject, x: Tensor, y: Tensor, minutes: float, every: int) -> dict[str, np.ndarray]:
    """Sums over the images so far, (cells,) each, for every nth cell, with the prefix cached: change of cross-entropy
    ("loss"), its square, that of every other chunk ("half"), right answers won ("hits"), tier 1's KL divergence ("kl").

    Kept after every chunk of images: a run stopped by `minutes` goes on where it was.
    """
    path = RESULTS / f"sensitivity-{subject.name}-exact.npz"
    cells, end = settings(subject.profile)[::every], time.monotonic() + 60 * minutes
    names = np.array([f"{name} {technique} {level:g}" for (name, technique), level in cells])
    empty = {name: np.zeros(len(cells)) for name in ("loss", "squares", "half", "hits", "kl")} | {"cells": names}
    kept = dict(np.load(path)) if path.exists() else empty
    if not np.array_equal(kept["cells"], names):  # of another version of the table
        kept = empty
    done, spent = int(kept.get("images", 0)), float(kept.get("seconds", 0.0))
    for i in range(done, len(x), CHUNK):
        if time.monotonic() > end:
            break
        start = time.process_time()
        replay = Replay(subject.module, x[i : i + CHUNK], [layer.name for layer in subject.profile.weighing])
        labels = y[i : i + CHUNK]
        base = F.cross_entropy(replay.logits, labels, reduction="none")
        right = int((replay.logits.argmax(1) == labels).sum())
        for j, (key, level) in enumerate(cells):
            logits, features = replay.run(perturb(subject.network, {key: level}))
            change = (F.cross_entropy(logits, labels, reduction="none") - base).double()
            kept["loss"][j] += float(change.sum())
            kept["squares"][j] += float(change.square().sum())
            kept["half"][j] += float(change.sum()) * (i // CHUNK % 2)
            kept["hits"][j] += int((logits.argmax(1) == labels).sum()) - right
            kept["kl"][j] += compare(replay, logits, features, None)["kl"] * len(labels)
        done, spent = i + len(labels), spent + time.process_time() - start
        kept |= {"images": np.array(done), "seconds": np.array(spent)}
        np.savez(path, **kept)
        print(f"exact sweep: {done} of {len(x)} images, {spent:.0f} s of processor time", flush=True)
    return kept


def limits(swept: dict[str, np.ndarray], score: np.ndarray) -> dict[str, float]:
    """How far the exact answer itself can be trusted, so that a rank correlation with it can be judged.

    Spearman-Brown from two halves of the images to all of them gives the reliability; its root is what a score that
    knew the truth would reach.
    """
    loss, images = swept["loss"], int(swept["images"])
    halves = float(spearmanr(swept["half"], loss - swept["half"])[0])
    whole = 2 * halves / (1 + halves)
    error = np.sqrt(np.maximum(swept["squares"] - loss**2 / images, 0.0))
    sure = np.abs(loss) > 2 * error
    return {
        "two halves of the images": halves,
        "a score that knew the truth": float(np.sqrt(whole)),
        "KL on the very images of the exact answer": float(spearmanr(swept["kl"], loss)[0]),
        "cells beyond two standard errors": int(sure.sum()),
        "tier 1 among these": float(spearmanr(score[sure], loss[sure])[0]),
    }


def run_whole(module: nn.Module, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One full test, as NNI, Distiller and AIMET do it: every layer is computed again."""
    with torch.inference_mode(), swapped(module, weights):
        return torch.cat([module(part) for part in torch.split(x, CHUNK)])


def race(subject: Subject, x: Tensor, few: Tensor, every: int = 10) -> tuple[float, dict[str, float]]:
    """(largest difference of cached and uncached logits, processor seconds for each image and cell of x).

    Tier 1 on the images `few` and the exact sweep, with its prefix cached and without as NNI and Distiller do it, take
    turns on every tenth cell, so that a busy machine slows all alike.
    """
    layers = [layer.name for layer in subject.profile.weighing]
    replays, worst = [Replay(subject.module, images, layers) for images in (few, x)], 0.0
    cells = settings(subject.profile)[::every]
    times = dict.fromkeys(("tier 1", "cached", "uncached"), 0.0)
    for key, level in cells * 2:
        plan, out = {key: level}, [torch.empty(0)] * 2
        works: dict[str, Callable[[], object]] = {
            "tier 1": lambda p=plan: compare(replays[0], *replays[0].run(perturb(subject.network, p)), None),
            "cached": lambda p=plan, o=out: o.__setitem__(0, replays[1].run(perturb(subject.network, p))[0]),
            "uncached": lambda p=plan, o=out: o.__setitem__(
                1, run_whole(subject.module, x, perturb(subject.network, p))
            ),
        }
        for name, work in works.items():
            times[name] += seconds(work) / 2 / len(cells) / (1 if name == "tier 1" else len(x))
        worst = max(worst, float((out[0] - out[1]).abs().max()))
    return worst, times


def cut_and_test(subject: Subject, x: Tensor, group: str, ratio: float) -> None:
    """torch-pruning's way: copy, cut the group, test the smaller network."""
    from core.engine.dependency import build_dependency
    from core.engine.surgery import remove_channels

    small = copy.deepcopy(subject.module)
    dependency = build_dependency(small, torch.zeros(2, *x.shape[1:]))
    removed = least_important(subject.network, group, ratio).tolist()
    remove_channels(dependency, small.get_submodule(group), removed)
    run_whole(small, x, {})


def rivals(subject: Subject, x: Tensor, each: float, every: int = 10) -> dict[str, float]:
    """Processor seconds of other tools' sweeps over images x; `each` is what one cell takes for one image, uncached."""
    cells, few = settings(subject.profile), x[:CHUNK]
    channels = [(key[0], level) for key, level in cells if key[1] == "prune_channels" and level < 1]  # it keeps some
    cut = sum(
        seconds(lambda g=group, r=ratio: cut_and_test(subject, few, g, r)) for group, ratio in channels[::every]
    ) / max(1, len(channels[::every]))
    return {
        "NNI, Distiller: mask and test, this table": each * len(x) * len(cells),
        "AIMET: ten ratios of every layer, this table's four techniques": each
        * len(x)
        * len(subject.profile.tunable)
        * 10
        * len(LEVELS),
        f"torch-pruning: cut and test, its {len(channels)} cells": cut / len(few) * len(x) * len(channels),
    }


def by_technique(score: np.ndarray, loss: np.ndarray, order: list[tuple[str, str, float]]) -> dict[str, float]:
    """Rank correlation with the exact answer, over all cells and within each technique."""
    kinds = np.array([technique for _, technique, _ in order])
    inside = {k: kinds == k for k in LEVELS if (kinds == k).sum() > 2}
    return {"all": float(spearmanr(score, loss)[0])} | {
        k: float(spearmanr(score[cells], loss[cells])[0]) for k, cells in inside.items()
    }


def draw(subject: Subject, pool: Tensor) -> None:
    """What tier 1 does before its first cell: picks images, and follows gradients for every cell."""
    plain = [(perturb(subject.network, {key: level}), dict[str, Tensor]()) for key, level in settings(subject.profile)]
    foresee(subject.network, draw_sample(subject.network, pool, None), plain)


def report(subject: Subject, args: argparse.Namespace) -> dict[str, object]:
    judge = subject.images(args.first, args.images)
    cells = settings(subject.profile)
    judged = slice(None, None, args.every)
    swept = exact_sweep(subject, *judge, args.minutes, args.every)
    loss, images = swept["loss"], int(swept["images"])
    unseen = subject.images(args.first + images, 96)
    ranked = rank_cells(subject.network, *unseen, cells)
    tier0 = min(seconds(lambda: rank_cells(subject.network, *unseen, cells)) for _ in range(3))
    path = RESULTS / f"sensitivity-{subject.name}.jsonl"
    path.unlink(missing_ok=True)
    start = time.process_time()
    pool = to_tensor(subject.data.calibration.x, subject.card)
    table = measure_cells(subject.network, pool, None, path, {"model": subject.name})
    tier1 = time.process_time() - start - tier0
    order = [(name, technique, level) for (name, technique), level in cells[judged]]
    worst, each = race(subject, judge[0][:CHUNK], unseen[0][: enough_images(subject.profile)])
    naive = rivals(subject, judge[0][:TOLD], each["uncached"])
    drawn = seconds(lambda: draw(subject, pool))
    once, exact = drawn + each["tier 1"] * len(cells), each["cached"] * TOLD * len(cells)
    by_key = {(c.layer, c.technique, c.level): c for c in ranked}
    scores = {
        "tier 1: KL": np.array([table.cells[k].kl for k in order]),
        "tier 1: SQNR of the logits": -np.array([table.cells[k].sqnr_db for k in order]),
        "tier 1: feature cosine": -np.array([table.cells[k].cosine for k in order]),
        "tier 0: empirical Fisher, 96 images": np.array([by_key[k].fisher for k in order]),
        "tier 0: weight error, no data": np.array([by_key[k].weight_error for k in order]),
    }
    ranks = {name: by_technique(values, loss, order) for name, values in scores.items()}
    return {
        "model": subject.name,
        "cells": len(cells), "cells_judged": len(order), "images": images, "seconds_scaled_to_images": TOLD,
        "spearman": ranks,
        "tier0_s": tier0, "tier1_s": tier1, "tier1_by_turns_s": once, "of_which_drawing_s": drawn,
        "cached_exact_s": exact, "others_s": naive,
        "limits_of_spearman": limits(swept, scores["tier 1: KL"]),
        "prefix_cache": {"largest_difference": worst, "times_faster": each["uncached"] / each["cached"]},
        "tier1_times_faster": {"than the cached exact sweep": exact / once}
        | {f"than {name}": value / once for name, value in naive.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject(parser)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop the exact sweep after so long; run again")
    parser.add_argument("--every", type=int, default=1, help="judge by every nth cell: for deep networks")
    parser.add_argument("--sweep", action="store_true", help="only go on with the exact sweep")
    parser.add_argument("--first", type=int, default=0, help="first image, in a fixed permutation of the test images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    RESULTS.mkdir(exist_ok=True)
    subject = open_subject(args.model, args.data, args.mean, args.std)
    if args.sweep:
        exact_sweep(subject, *subject.images(args.first, args.images), args.minutes, args.every)
        return
    found = report(subject, args)
    (RESULTS / f"sensitivity-{found['model']}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
