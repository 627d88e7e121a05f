"""Models, data sets and candidates on disk. The files are the truth and there is no second index to fall out of step:
a folder's record (`card.json`, `candidate.json`) is written last and atomically, so a folder without it does not exist.

    <root>/models/<id>/      model.onnx (the original: every comparison is with this file)  card.json  source.json
                             profile.json  baseline-<data id>.json  baseline-<data id>.npz  [weights.safetensors]
                             [sensitivity-<data id>.jsonl  calibration-<data id>.jsonl  latency-<machine id>.json]
           data/<id>/        data.npz  card.json  contact.png (a sheet of pictures)  source.json
           candidates/<id>/  model.onnx  candidate.json  recipe.yaml  predictions.npz
           jobs/<id>/        see core/jobs.py
           uploads/          files on their way in

Nothing here is ever overwritten with something else: ids are hashes of what the folder holds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from core.candidate import Candidate, Scores, scores_from_json
from core.cards import DataCard, ModelCard
from core.errors import StudioError
from core.layers import Profile


def write_json(path: Path, values: Any) -> None:
    """Atomic: a reader sees the old file or the new one, never half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(part, path)


def default_root() -> Path:
    """`$CNN_STUDIO_HOME`, or `.cnn-studio` in the home folder."""
    return Path(os.environ.get("CNN_STUDIO_HOME") or Path.home() / ".cnn-studio")


class Workspace:
    """A folder of models, data sets, candidates and jobs."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or default_root())
        for name in ("models", "data", "candidates", "jobs", "uploads"):
            if not (self.root / name).is_dir():  # asked for at every turn of a page
                (self.root / name).mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, name: str) -> Path:
        """`kind` is models, data, candidates or jobs. The name may come from a URL, so only its last part counts."""
        return self.root / kind / Path(name).name

    def models(self) -> dict[str, ModelCard]:
        """Id → card, newest first."""
        return {f.name: ModelCard.from_json(_read(f / "card.json")) for f in self._finished("models", "card.json")}

    def data_sets(self) -> dict[str, DataCard]:
        """Id → card, newest first."""
        return {f.name: DataCard.from_json(_read(f / "card.json")) for f in self._finished("data", "card.json")}

    def candidates(self, model: str | None = None, data: str | None = None) -> dict[str, Candidate]:
        """Id → candidate, newest first, of one model and data set or of all."""
        found = {
            f.name: Candidate.from_json(_read(f / "candidate.json"))
            for f in self._finished("candidates", "candidate.json")
        }
        return {k: c for k, c in found.items() if model in (None, c.model) and data in (None, c.data)}

    def model_card(self, model: str) -> ModelCard:
        return ModelCard.from_json(_read(self.folder("models", model) / "card.json"))

    def data_card(self, data: str) -> DataCard:
        return DataCard.from_json(_read(self.folder("data", data) / "card.json"))

    def candidate(self, name: str) -> Candidate:
        return Candidate.from_json(_read(self.folder("candidates", name) / "candidate.json"))

    def profile(self, model: str) -> Profile:
        return Profile.from_json(_read(self.folder("models", model) / "profile.json"))

    def baseline(self, model: str, data: str) -> Scores | None:
        """The original file's own scores on `data`, or None before they are measured."""
        path = self.folder("models", model) / f"baseline-{Path(data).name}.json"
        return scores_from_json(_read(path)) if path.exists() else None

    def _finished(self, kind: str, record: str) -> list[Path]:
        folders = [f for f in (self.root / kind).iterdir() if (f / record).exists()]
        return sorted(folders, key=lambda f: (-(f / record).stat().st_mtime_ns, f.name))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudioError(f"{path.parent.name} is not in the workspace any more ({path.name} is missing).") from error
    except ValueError as error:
        raise StudioError(f"{path.name} of {path.parent.name} cannot be read: {error}.") from error
