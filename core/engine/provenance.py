"""Where a candidate comes from: everything another person needs to get the same bytes and to judge the timings."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import onnx

from core.engine import runtime
from core.engine.data import Data
from core.engine.identity import digest
from core.machine import processor
from core.recipe import Recipe

LIBRARIES = ("torch", "onnx", "onnxruntime", "torch-pruning", "numpy")


def provenance(recipe: Recipe, original: Path, file: Path, data: Data) -> dict[str, str]:
    """Hashes, seed, versions, machine, and what the file says about its integers."""
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    return {
        "model_hash": digest(original.read_bytes())[:16],
        "file_hash": digest(file.read_bytes())[:16],
        "data_hash": data.card.hash,
        "recipe": recipe.id,
        "seed": str(recipe.seed),
        **({"quantization": said["quantization"]} if "quantization" in said else {}),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": str(runtime.all_threads()),
    }
