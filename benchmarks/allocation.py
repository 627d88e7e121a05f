"""Allocation: true accuracy at equal budgets, without training, of uniform and allocated plans; time beside NSGA-II.

    python -m benchmarks.allocation MODEL.onnx DATA.npz [--images 4000]

Run `benchmarks.sensitivity` first: its table is read. Channels at 75, 62 and 50 % of the MACs, weights at 6, 5 and 4
bits on average; narrowed networks also with what remains repaired, as the technique does it unless told otherwise, and
then also by the table of what repair leaves.
NSGA-II (Optuna, not a dependency) searches the same table for 100 times as long as the exact solution takes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.subjects import Subject, add_subject, open_subject
from core.choices import Choices
from core.engine.calibrate import lost, measure_plan, mend
from core.engine.fisher import rank_cells
from core.engine.sensitivity import settings
from core.engine.telling import answers
from core.plan import steps_of
from core.sensitivity_table import Plan, SensitivityTable, read_table
from core.spending import KINDS

RESULTS = Path(__file__).parent / "results"
FIRST = 2250  # images before it were seen by the table or by calibration
WIDTHS = tuple(i / 16 for i in range(1, 16))
BITS = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
PATIENCE = 100  # times the exact solution's time that NSGA-II gets
RUNS = [("prune_channels", WIDTHS, "macs", share) for share in (0.75, 0.62, 0.5)] + [
    ("quantize", BITS, "weight_bytes", bits) for bits in (6, 5, 4)
]


def other_table(table: SensitivityTable, measure: str, subject: Subject) -> SensitivityTable:
    """The table with another score in the place of KL: the plans that are measured beside it."""
    x, y = subject.images(2000, 96)
    ranks = rank_cells(subject.network, x, y, settings(subject.profile))
    ranked = {(c.layer, c.technique, c.level): c for c in ranks}
    cells = {k: replace(c, kl=max(getattr(ranked[k], measure), 1e-12)) for k, c in table.cells.items()}
    return SensitivityTable(table.about, cells)


def uniform_channels(choices: Choices, budget: float) -> Plan:
    """The same share removed from every open group, just within a budget of MACs."""
    names = [g.name for g in choices.profile.groups if not g.blocked]
    for ratio in np.linspace(0, 0.95, 191):
        plan = {(name, "prune_channels"): float(ratio) for name in names}
        if choices.cost_of(plan)[0] <= budget:
            return plan
    raise SystemExit("No uniform plan meets the budget.")


def nsga(choices: Choices, kind: str, budget: float, seconds: float) -> tuple[Plan | None, int]:
    """(the plan of least summed KL within the budget if one was found, trials) of Optuna's NSGA-II."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    items, k = choices.items({}), KINDS.index(kind)
    floor = choices.cost_of({})[k] - sum(x.costs[0][k] for x in items)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        picks = [(x, trial.suggest_int(x.name, 0, len(x.levels) - 1)) for x in items]
        return sum(x.losses[j] for x, j in picks), floor + sum(x.costs[j][k] for x, j in picks)

    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.NSGAIISampler(seed=0))
    study.optimize(objective, timeout=seconds)
    allowed = [t for t in study.trials if t.values and t.values[1] <= budget]
    if not allowed:
        return None, len(study.trials)
    best = min(allowed, key=lambda t: t.values[0])
    return {(x.name, x.technique): x.levels[best.params[x.name]] for x in items}, len(study.trials)


def rivals(choices: Choices, tables: Mapping[str, SensitivityTable], kind: str, budget: float) -> dict[str, Plan]:
    """The plans of least summed score within the budget, one for each table."""
    return {k: Choices(choices.profile, t, choices.levels).spend({kind: budget}).levels for k, t in tables.items()}


def uniform_bits(choices: Choices, bits: int) -> Plan:
    return {(layer.name, "quantize"): float(bits) for layer in choices.profile.tunable}


def compare(subject: Subject, table: SensitivityTable, images: int) -> Iterator[dict[str, object]]:
    x, y = subject.images(FIRST, images)
    before = answers(subject.module, x)
    tables = {"KL": table, "KL, repaired": table.repaired}
    tables |= {k: other_table(table, k, subject) for k in ("fisher", "weight_error")}
    for technique, levels, kind, share in RUNS:
        choices = Choices(subject.profile, table, {technique: levels})
        if technique == "quantize":
            uniform = uniform_bits(choices, int(share))
            budget = choices.cost_of(uniform)[1]
        else:
            budget = share * choices.cost_of({})[0]
            uniform = uniform_channels(choices, budget)
        plans = {"uniform": uniform} | rivals(choices, tables, kind, budget)
        start = time.perf_counter()
        Choices(subject.profile, table, {technique: levels}).spend({kind: budget})
        seconds = time.perf_counter() - start
        evolved, trials = nsga(choices, kind, budget, PATIENCE * seconds)
        plans |= {"NSGA-II": evolved} if evolved else {}
        lost = {k: measure_plan(subject.network, p, x, y, before)["accuracy"] for k, p in plans.items()}
        row: dict[str, object] = {
            "technique": technique,
            "budget": share,
            "original": float((before.argmax(1) == y).double().mean()),
            "accuracy_lost": lost,
            "cost_of_budget": {k: choices.cost_of(p)[KINDS.index(kind)] / budget for k, p in plans.items()},
            "kl": {k: choices.loss_of(p) for k, p in plans.items()},
            "solve_ms": seconds * 1000,
            "nsga_trials": trials,
        }
        if technique == "prune_channels":
            row["accuracy_lost_repaired"] = {k: repaired(subject, p, x, y, before) for k, p in plans.items()}
        print(json.dumps(row), flush=True)
        yield row


def repaired(subject: Subject, plan: Plan, x: Tensor, y: Tensor, before: Tensor) -> float:
    """Accuracy lost by what the technique itself makes of a plan."""
    with tempfile.TemporaryDirectory() as folder:
        module = mend(steps_of(plan), subject.model, subject.data, Path(folder) / "scratch")
    return lost(answers(module, x), y, before)["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject(parser)
    parser.add_argument("--images", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = read_table(RESULTS / f"sensitivity-{args.model.stem}.jsonl")
    if table is None:
        raise SystemExit("Run benchmarks.sensitivity on this model first.")
    subject = open_subject(args.model, args.data, args.mean, args.std)
    rows = list(compare(subject, table, args.images))
    (RESULTS / f"allocation-{subject.name}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
