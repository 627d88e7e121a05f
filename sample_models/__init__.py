"""Small trained CNNs that come with the studio. Torch-free: the gallery reads cards and pictures from here.

`networks.build(name)` makes the module, `python -m sample_models.train NAME` makes a checkpoint again.
"""

from __future__ import annotations

import json
from pathlib import Path

from core.cards import ModelCard

FOLDER = Path(__file__).parent
SAMPLES: dict[str, ModelCard] = {
    path.stem: ModelCard.from_json(json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(FOLDER.glob("*.json"))
}


def weights_file(name: str) -> Path:
    """The sample's state dict, .safetensors."""
    return FOLDER / f"{name}.safetensors"


def picture_file(name: str) -> Path:
    """A contact sheet of the data that the sample was trained for, .png."""
    return FOLDER / f"{name}.png"
