"""Names of what is kept: readable, and the same for the same content on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from core.recipe import Recipe

if TYPE_CHECKING:
    from core.engine.models import Model


def identify(name: str, content: str) -> str:
    """A folder's name: the readable part and a short hash of what it holds.

    >>> identify("My Net (v2)", "0123456789abcdef")
    'my-net-v2-01234567'
    """
    readable = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:40] or "model"
    return f"{readable}-{content[:8]}"


def candidate_id(recipe: Recipe, model_id: str, data_id: str) -> str:
    """The same recipe on the same model and data is the same candidate."""
    return f"{recipe.id}-{digest(model_id, data_id)[:8]}"


def digest(*parts: str | bytes) -> str:
    """SHA-256 over the parts, each with its length, so that no two lists of parts collide."""
    total = hashlib.sha256()
    for item in parts:
        data = item.encode() if isinstance(item, str) else item
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def fingerprint(model: Model) -> str:
    """What the model computes: weights, card, and the file as it came."""
    tensors = model.module.state_dict()
    weights = [part for name, t in sorted(tensors.items()) for part in (name, t.detach().cpu().numpy().tobytes())]
    file = model.file.read_bytes() if model.file else b""
    card = {key: value for key, value in model.card.to_json().items() if value is not False}  # a new fact renames none
    return digest(json.dumps(card, sort_keys=True), file, *weights)
