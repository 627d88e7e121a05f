"""CNN Studio without the studio: `from core import open_model, open_data, run, Recipe, Step`.

Names are looked up when they are asked for, so that the web process, which imports `core` too, never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.candidate import Candidate, Scores
    from core.cards import DataCard, ModelCard
    from core.catalog import CATALOG
    from core.engine.data_sets import open_data
    from core.engine.models import open_model
    from core.engine.run import run
    from core.errors import StudioError
    from core.frames import candidate_frame, layer_frame
    from core.recipe import Recipe, Step

_HOMES = {
    "CATALOG": "core.catalog",
    "Candidate": "core.candidate",
    "DataCard": "core.cards",
    "ModelCard": "core.cards",
    "Recipe": "core.recipe",
    "Scores": "core.candidate",
    "Step": "core.recipe",
    "StudioError": "core.errors",
    "candidate_frame": "core.frames",
    "layer_frame": "core.frames",
    "open_data": "core.engine.data_sets",
    "open_model": "core.engine.models",
    "run": "core.engine.run",
}

__all__ = [
    "CATALOG",
    "Candidate",
    "DataCard",
    "ModelCard",
    "Recipe",
    "Scores",
    "Step",
    "StudioError",
    "candidate_frame",
    "layer_frame",
    "open_data",
    "open_model",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
