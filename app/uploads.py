"""What a person brings: the two upload forms with their checklists, and the way of a file into the workspace."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import streamlit as st

from app import state
from core.architectures import ARCHITECTURES
from core.cards import NORMALIZATIONS
from core.errors import DataError, ModelError

MODEL_TYPES = ("onnx", "pth", "pt", "safetensors")
DATA_TYPES = ("npz", "zip")

MODEL_CHECKLIST = """
:material/check: **.onnx**, opset 9 or newer, exported by any tool: an image classifier with one input
(batch × channels × height × width) and one output (batch × classes)

:material/check: **.pth** or **.safetensors**, weights only, of a torchvision network that you name below

:material/check: up to 200 MB here; larger by its path on this computer

:material/close: whole pickled models: they can run code, so they are never opened. Export to ONNX instead
"""
DATA_CHECKLIST = """
:material/check: **.npz** with `x` (images × height × width × channels, 0–255) and `y` (labels 0, 1, …);
or `x_train`, `y_train`, `x_test`, `y_test`. Without `y`, agreement is measured instead of accuracy

:material/check: **.zip** with one folder of PNG or JPEG images per class, or `train/` and `test/` of such folders

:material/check: 20 images or more; they are resized to the model's input. Up to 200 MB here; larger by path

:material/check: split for you into train, calibration, validation and test, the same way every time
"""
DETECT, OWN = "Detect from labelled data", "My own"
BUILT_IN = {  # label → source
    "Shapes (10 classes, drawn here)": {"kind": "shapes"},
    "Digits (1,797 real 8×8 digits)": {"kind": "digits"},
    "CIFAR-10 (downloads 170 MB)": {"kind": "cifar10"},
}


def local() -> bool:
    """Whether the person at the browser is at this computer, so that a path means one of their own files."""
    return st.get_option("server.address") in ("127.0.0.1", "localhost", "::1")


def model_form() -> dict[str, Any]:
    """Draw the form for a model. Returns {"file" or "path", …options of the source}; empty while nothing is given."""
    st.markdown("#### Model")
    given = _file_form("Model file", MODEL_TYPES, "model")
    st.caption(MODEL_CHECKLIST)
    name = str(given.get("path") or getattr(given.get("file"), "name", "")).lower()
    if name.endswith((".pth", ".pt", ".safetensors")):
        given["architecture"] = st.selectbox(
            "Architecture of these weights",
            ARCHITECTURES,
            index=ARCHITECTURES.index("resnet18"),
            help="A weights file holds numbers without the network; name the torchvision network it belongs to.",
        )
        side = st.number_input("Input height and width (pixels)", 8, 1024, 224, 8, help="224 for ImageNet weights.")
        given["input_shape"] = [3, int(side), int(side)]
    given |= _normalization_form()
    return given if "file" in given or "path" in given else {}


def _normalization_form() -> dict[str, Any]:
    choice = st.selectbox(
        "Normalization of the input",
        [DETECT, *NORMALIZATIONS, OWN],
        format_func=lambda name: f"{name}: {_recipe_of(*NORMALIZATIONS[name])}" if name in NORMALIZATIONS else name,
        help="How pixels were scaled when the model was trained. Detecting tries the usual ways on labelled images "
        "and keeps the one with the highest accuracy.",
    )
    if choice == OWN:
        mean = st.text_input("Mean per channel", "0.5 0.5 0.5", help="Of pixels / 255, separated by spaces.")
        std = st.text_input("Standard deviation per channel", "0.25 0.25 0.25", help="Of pixels / 255.")
        return {"mean": mean, "std": std}
    if choice in NORMALIZATIONS:
        mean_of, std_of = NORMALIZATIONS[choice]
        return {"mean": list(mean_of), "std": list(std_of)}
    return {}


def _recipe_of(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """'mean 0.485 0.456 0.406, std 0.229 0.224 0.225'."""
    return f"mean {' '.join(f'{v:.4g}' for v in mean)}, std {' '.join(f'{v:.4g}' for v in std)}"


def data_form() -> dict[str, Any] | None:
    """Draw the form for data. Returns a source, "file" in it for an upload; None for no data, {} for not yet."""
    st.markdown("#### Data")
    here = {f"{card.title} (in this workspace)": k for k, card in state.workspace().data_sets().items()}
    own, none = "A file", "None: count and time only"
    choice = st.selectbox(
        "Images to measure on",
        [own, *here, *BUILT_IN, none],
        key="images",
        help="Accuracy needs images with labels.",
    )
    given: dict[str, Any] | None
    if choice == own:
        given = _file_form("Data file", DATA_TYPES, "data")
    elif choice in here:
        given = {"kind": "workspace", "id": here[choice]}
    else:
        given = BUILT_IN.get(choice)
    st.caption(DATA_CHECKLIST)
    return given


def _file_form(label: str, types: tuple[str, ...], key: str) -> dict[str, Any]:
    version = state.current().uploads
    file = st.file_uploader(label, types, key=f"{key}_file_{version}", max_upload_size=200)
    path = ""
    if local():
        path = st.text_input(
            f"…or the path of a {label.lower()} on this computer",
            key=f"{key}_path_{version}",
            placeholder=f"/home/me/{key}.{types[0]}",
            help="For large files: read in place, nothing is uploaded.",
        ).strip()
    return {"path": path} if path else {"file": file} if file else {}


def settle(given: dict[str, Any], types: tuple[str, ...]) -> dict[str, Any]:
    """A form's answer → a source for a job: an uploaded file is moved into the workspace. Raises StudioError."""
    if "kind" in given:
        return given
    rest = {name: value for name, value in given.items() if name not in ("file", "path")}
    for name in {"mean", "std"} & rest.keys():
        rest[name] = _numbers(name, rest[name]) if isinstance(rest[name], str) else rest[name]
    if "file" in given:
        file = given["file"]
        folder = state.workspace().root / "uploads" / secrets.token_hex(6)
        folder.mkdir()
        path = folder / (re.sub(r"[^\w.-]+", "_", Path(file.name).name)[-80:] or "upload")
        with path.open("wb") as target:
            shutil.copyfileobj(file, target)
    else:
        path = Path(given["path"]).expanduser()
        if not local() or not path.is_file():
            raise DataError(f"There is no file {str(path)!r} on this computer; give the full path of a file.")
    if path.suffix.lower().lstrip(".") not in types:
        accepted = ", ".join(f".{t}" for t in types)
        raise DataError(
            f"{path.name} cannot be opened here: received {path.suffix or 'no ending'}; accepted {accepted}."
        )
    return {"kind": "file", "path": str(path.resolve()), **rest}


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise ModelError(f"The {name} must be one number or three, one per channel; received {text!r}.")
    return values
