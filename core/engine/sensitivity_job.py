"""The job behind the forecast: params {"model": id, "data": id} → tiers 0, 1 and 2 and this machine's operator times.

    models/<id>/sensitivity-<data id>.jsonl   calibration-<data id>.jsonl   latency-<machine id>.json

Each cell and each plan is saved as it is measured, so a cancelled or killed job goes on where it stopped, and
`core.forecast.load` may read at any time.
"""

from __future__ import annotations

from typing import Any

import torch

from core.engine.calibrate import calibrate
from core.engine.context import Report, silent
from core.engine.data import Data, Images, to_tensor
from core.engine.judge import Unseen
from core.engine.latency_job import measure_latency
from core.engine.models import Model
from core.engine.perturb import describe
from core.engine.progress import part
from core.engine.sensitivity import VERSION, measure_cells
from core.engine.tasks import open_data, open_model
from core.recipe_latency import latency_path
from core.workspace import Workspace, write_json

TABLE_IMAGES = 512  # that tier 1 picks from; without labels: KL needs none
MOMENT_IMAGES = 128  # what the factors are weighted by
CALIBRATION_IMAGES = 2000  # of the validation part, labelled or not


def measure_sensitivity(workspace: Workspace, model_id: str, data_id: str, report: Report = silent) -> dict[str, Any]:
    """Measure what is not there yet. Returns {"cells", "plans"}, what the table and the calibration now hold."""
    report(0.0, "Reading the model and the data")
    model = open_model(workspace, {"kind": "workspace", "id": model_id})
    data = open_data(workspace, data_id, model.card)
    folder, profile = workspace.folder("models", model_id), workspace.profile(model_id)
    few = data.calibration.take(slice(0, MOMENT_IMAGES))
    network = describe(model.module, model.card, profile, few, part(report, 0.0, 0.02))
    about = _about(model_id, model, data)
    x, y = _tensors(data.calibration, TABLE_IMAGES, model.card)
    path = folder / f"sensitivity-{data_id}.jsonl"
    table = measure_cells(network, x, y, path, about, part(report, 0.02, 0.12))
    times = latency_path(workspace, model_id)
    if not times.exists():
        write_json(times, measure_latency(model, data, profile, part(report, 0.12, 0.25)).to_json())
    x, y = _tensors(data.validation, CALIBRATION_IMAGES, model.card)
    plans = folder / f"calibration-{data_id}.jsonl"
    unseen = Unseen.read(folder / f"baseline-{data_id}.npz", data.test)
    about |= {"images": len(x)}
    calibrate(network, table, x, y, plans, about, part(report, 0.25, 1.0), (model, data), unseen)
    return {"cells": len(table.cells), "plans": len(plans.read_text(encoding="utf-8").splitlines()) - 1}


def measure_channels(workspace: Workspace, ids: tuple[str, str], model: Model, data: Data, report: Report) -> None:
    """Of the same table only how sensitive channels are, coarse levels first; `ids` are the model's and the data's."""
    few = data.calibration.take(slice(0, MOMENT_IMAGES))
    network = describe(model.module, model.card, workspace.profile(ids[0]), few, report)
    about = _about(ids[0], model, data)
    x, y = _tensors(data.calibration, TABLE_IMAGES, model.card)
    path = workspace.folder("models", ids[0]) / f"sensitivity-{ids[1]}.jsonl"
    measure_cells(network, x, y, path, about, report, ("prune_channels",))


def _about(model_id: str, model: Model, data: Data) -> dict[str, Any]:
    """What a table was measured on. Of networks with a Softmax at their end there are tables of its probabilities."""
    about = {"model": model_id, "data": data.card.hash, "version": VERSION}
    return about | ({"answers": "logits"} if model.card.probabilities else {})


def _tensors(images: Images, count: int, card: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    few = images.take(slice(0, count))
    return to_tensor(few.x, card), None if few.y is None else torch.from_numpy(few.y)
