"""Weights files → a plain state dict: `.safetensors`, and `.pth` through `torch.load(weights_only=True)`.

A pickle is a program, so only tensors and plain containers are ever taken from it. The kind is read from the content,
not from the file's name. Sizes are checked before anything is loaded: a small file can describe a huge tensor.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.errors import ModelError

LARGEST_FILE = 2**31  # bytes
MOST_TENSORS = 20_000
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")  # keys that people save a state dict under
ACCEPTED = "accepted are a state dict (torch.save(model.state_dict(), path)), .safetensors and .onnx"


def is_weights(path: Path) -> bool:
    """Whether the content looks like weights without a network, rather than ONNX."""
    with path.open("rb") as file:
        start = file.read(16)
    return start[:4] == b"PK\x03\x04" or start[:1] == b"\x80" or _is_safetensors(path, start)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name → tensor. Wrapping dictionaries and `module.` prefixes are taken off. Raises ModelError."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ModelError(f"{path.name} has {size / 2**20:.0f} MB; accepted are up to {LARGEST_FILE // 2**20} MB.")
    with path.open("rb") as file:
        start = file.read(16)
    found = _read_safetensors(path) if _is_safetensors(path, start) else _read_pickle(path, start)
    state = _unwrap(path.name, found)
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > 2 * size + 2**20:
        raise ModelError(f"{path.name} describes tensors larger than the file itself; {ACCEPTED}.")
    return state


def _is_safetensors(path: Path, start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 0 < length <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if len(header) > MOST_TENSORS:
            raise ModelError(f"{path.name} holds {len(header)} tensors; accepted are up to {MOST_TENSORS}.")
        state: dict[str, Tensor] = load_file(path)
        return state
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path.name} cannot be read as safetensors: {_first_line(error)}; {ACCEPTED}.") from error


def _read_pickle(path: Path, start: bytes) -> Any:
    _check_archive(path, start)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|[Ii]nstruct\w+ .*?([\w.]+\.[\w.]+)", str(error))
        what = f"needs {named[1] or named[2]} to be opened" if named else "holds more than tensors"
        raise ModelError(f"{path.name} {what}, which could run code; {ACCEPTED}.") from error
    except Exception as error:  # torch.load raises whatever its parsers meet in a damaged file
        raise ModelError(f"{path.name} cannot be read as weights: {_first_line(error)}; {ACCEPTED}.") from error


def _check_archive(path: Path, start: bytes) -> None:
    """Refuse what is no archive of torch's, or whose parts unpack to more than the file holds."""
    if start[:2] != b"PK":
        if start[:1] != b"\x80":  # torch before 1.6 wrote a bare pickle, which weights_only reads too
            raise ModelError(f"{path.name} is neither a PyTorch file nor safetensors; {ACCEPTED}.")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ModelError(f"{path.name} is damaged or cut off: {_first_line(error)}; {ACCEPTED}.") from error
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise ModelError(f"{path.name} is a TorchScript program, which is code; {ACCEPTED}.")
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise ModelError(f"{path.name} is a zip archive without PyTorch weights; {ACCEPTED}.")
    if len(entries) > MOST_TENSORS or sum(entry.file_size for entry in entries) > 2 * path.stat().st_size + 2**20:
        raise ModelError(f"{path.name} unpacks to far more than it holds; {ACCEPTED}.")


def _unwrap(name: str, found: Any) -> dict[str, Tensor]:
    """The state dict inside what was saved."""
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    state = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        what = f"keys {', '.join(map(repr, list(found)[:3]))}" if isinstance(found, Mapping) else type(found).__name__
        raise ModelError(f"{name} holds no state dict, but {what}; {ACCEPTED}.")
    if any(tensor.layout != torch.strided for tensor in state.values()):
        raise ModelError(f"{name} holds sparse tensors; accepted are dense ones.")
    if all(str(key).startswith("module.") for key in state):
        state = {str(key).removeprefix("module."): tensor for key, tensor in state.items()}
    return {str(key): tensor.detach() for key, tensor in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
