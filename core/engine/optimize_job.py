"""The job behind `cnn-studio optimize` and its button: one search over recipes, within minutes and an allowed loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from core.engine.latency_table import expected_seconds, measure_table, operators_of
from core.engine.optimize import Search, TimeUp
from core.engine.sensitivity_job import measure_channels
from core.engine.tasks import measure, open_data, open_model
from core.latency_table import LatencyTable
from core.recipe_latency import load_latency, stand_in
from core.sensitivity_table import SensitivityTable, read_table
from core.strategy import DROPS, Goal, Strategy
from core.workspace import Workspace

TABLE_SHARE = 0.35  # of the time left, that measuring the sensitivity may take
TABLE_LEAST = 10.0  # seconds that are worth beginning it
TIMES_SHARE = 0.1  # of the time left, that timing operators may take
OPERATOR_SECONDS = 0.04  # on each
Report = Callable[..., None]


def optimize(
    workspace: Workspace, params: dict[str, Any], report: Report, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """params {"model": id, "data": id, optional "drop": share, "objective", "minutes"} → what was found and tried.

    While it runs, `report` hears "best", the id of the best candidate so far, and "trials", the rows of `Row`.
    """
    began, ids = clock(), (params["model"], params["data"])
    report(0.0, "Reading the model and the data")
    model = open_model(workspace, {"kind": "workspace", "id": ids[0]})
    data = open_data(workspace, ids[1], model.card)
    judge = "accuracy" if data.card.labelled else "agreement"
    drop = params.get("drop")
    goal = Goal(DROPS[judge] if drop is None else drop, params.get("objective", "latency"), params.get("minutes", 5.0))
    if not workspace.baseline(*ids):
        measure(workspace, ids[0], model, ids[1], data, lambda _, message, **__: report(0.0, message))
    search = Search(workspace, ids, model, data, goal, report, clock, began)
    strategy = Strategy(
        workspace.profile(ids[0]),
        goal,
        lambda: channel_table(search),
        search.training,
        lambda kind: operator_times(search, kind),
    )
    reason = search.run(strategy)
    best, first = search.best, next((row for row in search.rows if row.candidate), None)
    if best is None:
        reason += " No recipe kept the allowed loss and gained by it"
        reason += f"; the nearest is kept: {first.title}." if first else "."
    return {
        "candidate": best.candidate if best else first.candidate if first else None,
        "found": best is not None,
        "reason": reason,
        "judge": judge,
        "drop": goal.drop,
        "objective": goal.objective,
        "images": len(search.judged),
        "seconds": clock() - began,
        "trials": [asdict(row) for row in search.rows],
    }


def channel_table(search: Search) -> SensitivityTable | None:
    """How sensitive each group of channels is, as far as a share of the time left allows; None where it allows none.

    Coarse levels come first, so a table that was cut short still ranks the groups.
    """
    space, ids = search.space, search.ids
    if TABLE_SHARE * search.left >= TABLE_LEAST:
        with suppress(TimeUp):  # what was measured is saved
            measure_channels(space, ids, search.model, search.blind, _until(search, TABLE_SHARE))
    return read_table(space.folder("models", ids[0]) / f"sensitivity-{ids[1]}.jsonl")


def operator_times(search: Search, kind: str) -> LatencyTable | None:
    """This machine's operators in one number type: known from the forecast, or timed now where a share of the time left
    allows it, or read from the time of each layer in the original file. Only shares of the whole are asked of them, so
    their affine step matters little and is not fitted."""
    known = load_latency(search.space, search.ids[0])
    if known is not None:
        return known
    profile = search.space.profile(search.ids[0])
    operators = operators_of(profile, (kind,))
    if expected_seconds(profile, operators, OPERATOR_SECONDS) <= TIMES_SHARE * search.left:
        with suppress(TimeUp):
            return measure_table(operators, seconds=OPERATOR_SECONDS, report=_until(search, 2 * TIMES_SHARE))
    return stand_in(profile)


def _until(search: Search, share: float) -> Report:
    """A report that raises TimeUp once this share of the time that is left now is over."""
    end = search.clock() + share * search.left

    def heard(_: float, message: str, **numbers: object) -> None:
        if search.clock() > end:
            raise TimeUp
        search.report(search.done, message)

    return heard
