"""Joint prediction: 60 random mixed recipes that calibration never saw, forecast and then measured.

    python -m benchmarks.forecast MODEL.onnx DATA.npz [--recipes 60] [--images 7250] [--seed 0] [--repaired]

Run `benchmarks.sensitivity` first: its table is read. The forecast is calibrated on 2,000 images by 16 plans; recipes
lie between a changed answer in a hundred and six in ten, evenly in the root of nats, so that two in five lose more
than 10 points. Evenly in the logarithm nine in ten would lose less, and a perfect forecast of such counts reach a
rank correlation of 0.955. They are judged on `--images` others; what is compared is the accuracy lost, so that the
difficulty of either part cancels.
Goals: Spearman 0.97; within 10 points of the baseline a mean error of 0.8 points and an 80 % interval no wider than
±2.0 that covers 75–90 %.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.subjects import Subject, add_subject, open_subject
from core.calibration import NEAR, Point
from core.engine.calibrate import calibrate, measure_plan
from core.engine.calibration_plans import COUNT, SCOUTED, random_plan, reach
from core.engine.telling import answers
from core.forecast import Forecast
from core.measured_plans import calibration_point
from core.plan import key_levels, plan_rows
from core.sensitivity_table import SensitivityTable, append_lines, read_lines, read_table, sum_kl

RESULTS = Path(__file__).parent / "results"
FITTED = 2000  # images that calibration sees
Within = tuple[float, float]


def judged(
    subject: Subject, table: SensitivityTable, within: Within, count: int, images: int, seed: int
) -> list[dict[str, object]]:
    """Random recipes with the accuracy each one lost; kept as they are measured, so a stopped run goes on.

    Their summed KL, in nats, lies `within`.
    """
    path = RESULTS / f"forecast-{subject.name}-recipes.jsonl"
    rows = [r for r in read_lines(path) if (r["images"], r["seed"]) == (images, seed)]
    rng = np.random.default_rng(1000 + seed)
    aims = rng.uniform(*np.sqrt(within), count) ** 2
    plans = [random_plan(subject.profile, table, float(aim), rng) for aim in aims]
    x, y = subject.images(FITTED + 250, images)  # neither calibration nor tier 1 saw these
    before = answers(subject.module, x)
    for plan in plans[len(rows) :]:
        lost = measure_plan(subject.network, plan, x, y, before)
        row = {"seed": seed, "images": images, "plan": plan_rows(plan), "kl": sum_kl(table, plan)[0], "drop": lost}
        append_lines(path, [row])
        rows.append(row)
        print(f"recipe {len(rows)} of {count}: KL {row['kl']:.3f}, lost {lost['accuracy']:.2%}", flush=True)
    return rows[:count]


def told(_: float, message: str, **__: object) -> None:
    print(message, flush=True)


def calibrated(subject: Subject, table: SensitivityTable, repaired: bool) -> tuple[tuple[Point, ...], Within]:
    """The measured plans, and the nats between which they lie."""
    path = RESULTS / f"forecast-{subject.name}-calibration.jsonl"
    x, y = subject.images(0, FITTED)
    about, techniques = {"model": subject.name, "images": FITTED}, (subject.model, subject.data) if repaired else None
    rows = calibrate(subject.network, table, x, y, path, about, told, techniques)
    found = (calibration_point(table, row, "accuracy") for row in rows)
    scouted = [(row["kl"], row["drop"]["agreement"]) for row in rows[: len(SCOUTED)]]
    return tuple(point for point in found if point), reach(scouted)


def summary(subject: Subject, forecast: Forecast, rows: list[dict[str, object]]) -> dict[str, object]:
    plans, drop = [key_levels(r["plan"]) for r in rows], np.array([r["drop"]["accuracy"] for r in rows])
    known = forecast.calibration(False)
    found = [known.at(forecast.total(forecast.sums(p, False), False), forecast.trait(p, False)) for p in plans]
    predicted, wide = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    errors, near = np.abs(predicted - drop), drop < NEAR
    start = time.perf_counter()
    plan = dict.fromkeys(list(forecast.table.curves)[:60], 0.5)
    for _ in range(100):
        forecast.predict_plan(plan)
    return {
        "model": subject.name,
        "recipes": len(rows),
        "images": rows[0]["images"],
        "calibration_plans": len(forecast.calibration(False).points),
        "ways": forecast.ways(False),
        "spearman": float(spearmanr(predicted, drop)[0]),
        "spearman_of_a_perfect_forecast": ceiling(rows),
        "near": {
            "recipes": int(near.sum()),
            "mean_error_points": float(errors[near].mean() * 100),
            "half_width_points": float(np.median(wide[near]) * 100),
            "coverage": float((errors <= wide)[near].mean()),
        },
        "far": {
            "recipes": int((~near).sum()),
            "mean_error_points": float(errors[~near].mean() * 100),
            "half_width_points": float(np.median(wide[~near]) * 100),
            "coverage": float((errors <= wide)[~near].mean()),
        },
        "predict_60_settings_ms": (time.perf_counter() - start) * 10,
        "repaired": left_out(forecast) if forecast.calibration(True).points else None,
    }


def ceiling(rows: list[dict[str, object]], draws: int = 300) -> float:
    """What a forecast that knew the true losses would reach: counted on so many images, recipes that lose little tie.

    True losses are taken as counted where they are large, and near the original as the margins say, which vary less,
    scaled to the same sum.
    """
    counted, changed, expected = (
        np.array([r["drop"][name] for r in rows]) for name in ("accuracy", "agreement", "expected_accuracy")
    )
    near, rng = counted < NEAR, np.random.default_rng(0)
    true = np.where(near, expected * counted[near].sum() / expected[near].sum(), counted)
    error = np.sqrt(np.maximum(changed - counted**2, 0.0) / np.array([r["images"] for r in rows]))
    return float(np.mean([spearmanr(true, true + error * rng.normal(size=len(rows)))[0] for _ in range(draws)]))


def left_out(forecast: Forecast) -> dict[str, float]:
    """Plans that repair what remains: each predicted from all others."""
    known = forecast.calibration(True)
    errors, near = np.abs(known.left_out - known.drop), known.drop < NEAR
    wide = np.array([known.width(float(drop), 0) for drop in known.left_out])
    return {
        "plans": len(errors),
        "spearman": float(spearmanr(known.left_out, known.drop)[0]),
        "near_mean_error_points": float(errors[near].mean() * 100),
        "near_half_width_points": float(np.median(wide[near]) * 100),
        "coverage": float((errors <= wide).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject(parser)
    parser.add_argument("--recipes", type=int, default=60)
    parser.add_argument("--images", type=int, default=7250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repaired", action="store_true", help="also 16 plans whose remaining layers are solved again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = read_table(RESULTS / f"sensitivity-{args.model.stem}.jsonl")
    if table is None:
        raise SystemExit("Run benchmarks.sensitivity on this model first.")
    subject = open_subject(args.model, args.data, args.mean, args.std)
    points, within = calibrated(subject, table, args.repaired)
    assert len(points) >= COUNT - 2, "calibration is not complete"
    rows = judged(subject, table, within, args.recipes, args.images, args.seed)
    found = summary(subject, Forecast(subject.profile, table, points, 1.0, images=args.images), rows)
    path = RESULTS / f"forecast-{subject.name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[f"seed {args.seed}"] = found
    path.write_text(json.dumps(kept, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
