"""What jobs do: open a model with its data, run a recipe. Heavy imports happen inside, so that a job that is refused
early never waits for torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cards import ModelCard
from core.engine.identity import candidate_id, fingerprint, identify
from core.engine.progress import part
from core.recipe import Recipe
from core.workspace import Workspace, write_json

if TYPE_CHECKING:
    from core.engine.data import Data
    from core.engine.models import Model

Report = Callable[..., None]


def open_pair(workspace: Workspace, params: dict[str, Any], report: Report) -> dict[str, Any]:
    """Bring a model and, if given, a data set into the workspace; profile the one and score it on the other.

    params {"model": source, "data": source or None} → {"model": id, "data": id or None}. A source is what
    `models.open_model` and `data_sets.open_data` take, or {"kind": "workspace", "id"}.
    """
    report(0.01, "Reading the model")
    model = open_model(workspace, params["model"])
    own = params["model"]["kind"] == "file"
    model_id = "" if own else bring_model(workspace, params["model"], model, part(report, 0.02, 0.1))
    report(0.1, "Reading the data", **({} if own else {"model": model_id}))  # it is open even if its data cannot be had
    data_id = bring_data(workspace, params["data"], part(report, 0.1, 0.2)) if params.get("data") else None
    data = open_data(workspace, data_id, model.card) if data_id else None
    if data and own:
        report(0.2, "Finding the normalization that fits the images")
        model = learn_from(data, model, params["model"])
    model_id = model_id or bring_model(workspace, params["model"], model, part(report, 0.4, 0.5))
    report(0.5, "Measuring the original on the test images", model=model_id)
    if data_id and data and not workspace.baseline(model_id, data_id):
        measure(workspace, model_id, model, data_id, data, part(report, 0.5, 1.0))
    for source in (params["model"], params.get("data") or {}):
        clear_upload(workspace, source)
    return {"model": model_id, "data": data_id}


def run_recipe(workspace: Workspace, params: dict[str, Any], report: Report) -> dict[str, Any]:
    """params {"model": id, "data": id, "recipe": YAML} → {"candidate": id}. Run once, a recipe is not run again."""
    from core.engine.run import run

    recipe = Recipe.from_yaml(params["recipe"])
    name = candidate_id(recipe, params["model"], params["data"])
    folder = workspace.folder("candidates", name)
    if (folder / "candidate.json").exists():
        return {"candidate": name}
    report(0.0, "Reading the model and the data")
    model = open_model(workspace, {"kind": "workspace", "id": params["model"]})
    data = open_data(workspace, params["data"], model.card)
    folder.mkdir(exist_ok=True)
    known = workspace.folder("models", params["model"]) / f"baseline-{params['data']}.npz"
    ids = (params["model"], params["data"])
    run(recipe, model, data, folder, ids=ids, baseline=known, report=part(report, 0.02, 1.0))
    return {"candidate": name}


def optimize(workspace: Workspace, params: dict[str, Any], report: Report) -> dict[str, Any]:
    """The automatic recipe; see `optimize_job.optimize` for params and result."""
    from core.engine import optimize_job

    return optimize_job.optimize(workspace, params, report)


def measure_sensitivity(workspace: Workspace, params: dict[str, Any], report: Report) -> dict[str, Any]:
    """params {"model": id, "data": id} → how many cells and plans the forecast knows; what was measured stays."""
    from core.engine.sensitivity_job import measure_sensitivity as measure_all

    return measure_all(workspace, params["model"], params["data"], report)


def open_model(workspace: Workspace, source: dict[str, Any]) -> Model:
    """A model from a source. One in the workspace keeps the card it was given when it came, and its file."""
    from core.engine import models

    if source["kind"] != "workspace":
        return models.open_model(source)
    folder = workspace.folder("models", source["id"])
    card = workspace.model_card(source["id"])
    origin = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    if origin["kind"] == "file":
        origin["path"] = str(folder / origin["path"])
    opened = models.open_model(origin)
    card = card.with_(probabilities=opened.card.probabilities)  # cards did not always say
    return replace(opened, card=card, file=folder / "model.onnx")


def open_data(workspace: Workspace, data_id: str, card: ModelCard) -> Data:
    """A data set of the workspace, at the size of the model's input."""
    from core.engine import data_sets

    return data_sets.fit_to(data_sets.load_data(workspace.folder("data", data_id)), card)


def learn_from(data: Data, model: Model, source: dict[str, Any]) -> Model:
    """What an uploaded file does not say about itself, from images: normalization and, with labels, class names."""
    from core.engine import models

    card = model.card
    if "mean" not in source:
        card = models.guess_normalization(model, data.validation)
    if data.card.labelled and "classes" not in source and len(card.classes) == len(data.card.classes):
        card = card.with_(classes=data.card.classes)
    return replace(model, card=card)


def bring_data(workspace: Workspace, source: dict[str, Any], report: Report) -> str:
    """Read, split and keep a data set. Returns its id; one that is there already is not written again."""
    from core.engine import data_sets

    if source["kind"] == "workspace":
        workspace.data_card(source["id"])
        return str(source["id"])
    data = data_sets.open_data(source)
    data_id = identify(data.card.name, data.card.hash)
    folder = workspace.folder("data", data_id)
    if not (folder / "card.json").exists():
        report(0.7, "Keeping the data")
        folder.mkdir(exist_ok=True)
        write_json(folder / "source.json", source)
        data_sets.save_data(data, folder)
    return data_id


def bring_model(workspace: Workspace, source: dict[str, Any], model: Model, report: Report) -> str:
    """Keep a model with its original file and its profile. Returns its id."""
    from core.engine.profile import profile

    if source["kind"] == "workspace":
        return str(source["id"])
    model_id = identify(model.card.name, fingerprint(model))
    folder = workspace.folder("models", model_id)
    if (folder / "card.json").exists():
        return model_id
    folder.mkdir(exist_ok=True)
    if source["kind"] == "file":
        uploaded = Path(source["path"])
        kept = f"source{uploaded.suffix.lower()}"
        shutil.copyfile(uploaded, folder / kept)
        source = {**source, "path": kept}
    write_json(folder / "source.json", source)
    file = keep_file(model, folder / "model.onnx", part(report, 0.0, 0.4))
    found = profile(model, file, part(report, 0.4, 1.0))
    write_json(folder / "profile.json", found.to_json())
    write_json(folder / "card.json", model.card.to_json())
    return model_id


def keep_file(model: Model, path: Path, report: Report) -> Path:
    """The original's ONNX file: the uploaded one where it takes any number of images, or our export of the network."""
    from core.engine.formats import onnx_writer

    report(0.0, "Writing the original as ONNX")
    if model.file is None or not onnx_writer.free_batch(model.file, path):
        onnx_writer.export(model.module, model.card, path, report)
    return path


def clear_upload(workspace: Workspace, source: dict[str, Any]) -> None:
    """Remove an uploaded file once the workspace holds what was in it. A file read in place is the user's own."""
    folder = Path(source.get("path", "")).parent
    if folder.parent == (workspace.root / "uploads").resolve():
        shutil.rmtree(folder, ignore_errors=True)


def measure(workspace: Workspace, model_id: str, model: Model, data_id: str, data: Data, report: Report) -> None:
    """Score the original file on the whole test part."""
    from core.engine.evaluate import save_predictions
    from core.engine.run import measure_original

    folder = workspace.folder("models", model_id)
    scores, logits = measure_original(folder / "model.onnx", model.card, data, report=report)
    save_predictions(folder / f"baseline-{data_id}.npz", logits)
    write_json(folder / f"baseline-{data_id}.json", scores.to_json())
