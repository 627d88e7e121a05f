"""Where models come from: samples, torchvision's architectures with weights, ONNX files.

A file says little about how its pixels were scaled, so `guess_normalization` tries the common ways on images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.architectures import ARCHITECTURES
from core.cards import NORMALIZATIONS, ModelCard
from core.engine.clean import clean
from core.engine.data import Images, to_tensor
from core.engine.formats.onnx_reader import DEFAULT_INPUT, read_file
from core.engine.formats.weights_reader import is_weights, read_weights
from core.engine.softmax import leave_out
from core.engine.train import accuracy
from core.errors import ModelError

SCREENED, MOST_IMAGES = 128, 512  # images that `guess_normalization` looks at, first and to decide
MARGIN = 0.1  # in accuracy, or in nats without labels: what 128 images cannot tell apart
HELPERS = ("aux1", "aux2", "AuxLogits")  # heads that only training uses
LAST = "The uploaded file takes images with channels last; the studio's files take them with channels first."
SOFT = "Files answer with probabilities, as the uploaded one did; the studio works on what their last Softmax reads."
NATIVE_SIDES = {"inception_v3": 299}  # where a network's own input is not 224 × 224


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, its card, and the uploaded ONNX file where that runs as it is: any batch size,
    channels first. Without one, the original that candidates are compared with is our export of `module`."""

    module: nn.Module
    card: ModelCard
    file: Path | None = None


def architectures() -> tuple[str, ...]:
    """Names of torchvision's convolutional classification networks."""
    return ARCHITECTURES


def open_model(source: Mapping[str, Any]) -> Model:
    """A model from {"kind": "sample", "name"} or {"kind": "file", "path", optional "architecture", "input_shape",
    "mean", "std", "classes"}. Raises ModelError."""
    if source.get("kind") == "sample":
        return _open_sample(str(source["name"]))
    if source.get("kind") != "file":
        raise ModelError(f"Unknown kind of model: received {source.get('kind')!r}, accepted are sample and file.")
    path = Path(source["path"])
    if not path.is_file():
        raise ModelError(f"There is no file {path.name!r}; accepted are .onnx, .pth and .safetensors.")
    if not is_weights(path):
        return _open_onnx(path, source)
    if not source.get("architecture"):
        raise ModelError(
            f"{path.name} holds weights without a network: name the torchvision architecture that they belong to."
        )
    return _open_weights(path, str(source["architecture"]), source)


def _open_sample(name: str) -> Model:
    from sample_models import SAMPLES
    from sample_models.networks import build

    return Model(build(name), SAMPLES[name])


def _open_onnx(path: Path, source: Mapping[str, Any]) -> Model:
    wanted = source.get("input_shape")
    found = read_file(path, tuple(wanted) if wanted else None)
    if len(found.input_shape) != 3:
        raise ModelError(
            f"The model takes inputs of shape {_shown(found.input_shape)}; accepted are images (n, channels, height, "
            "width)."
        )
    if len(found.output_shapes) != 1 or len(found.output_shapes[0]) != 1:
        raise ModelError(
            f"The model answers with {', '.join(map(_shown, found.output_shapes))}; accepted are classifiers, which "
            "answer with (n, classes)."
        )
    runs_as_it_is = found.batch is None and not found.channels_last
    card = _card(path, source, found.input_shape, found.output_shapes[0][0])
    module, cleaned = clean(found.module, card.input_shape)
    soft = leave_out(module)
    said = (cleaned, LAST if found.channels_last else "", SOFT if soft else "")
    card = card.with_(description=" ".join(filter(None, said)), probabilities=soft)
    return Model(module, card, path if runs_as_it_is else None)


def _open_weights(path: Path, architecture: str, source: Mapping[str, Any]) -> Model:
    state = read_weights(path)
    module, classes = load_architecture(architecture, state)
    side = NATIVE_SIDES.get(architecture, DEFAULT_INPUT[-1])
    shape = tuple(source.get("input_shape") or (DEFAULT_INPUT[0], side, side))
    mean, std = NORMALIZATIONS["ImageNet"]
    return Model(module, _card(path, {"mean": mean, "std": std, **source}, shape, classes, architecture))


def _card(
    path: Path, source: Mapping[str, Any], shape: tuple[int, ...], classes: int, architecture: str = ""
) -> ModelCard:
    names = tuple(source.get("classes") or (f"class {i}" for i in range(classes)))
    if len(names) != classes:
        raise ModelError(f"The model tells {classes} classes apart; received {len(names)} names of classes.")
    channels, height, width = shape
    mean, std = (tuple(map(float, source.get(key) or (value,))) for key, value in (("mean", 0), ("std", 1)))
    if not {len(mean), len(std)} <= {1, channels} or min(std) <= 0:
        raise ModelError(
            f"Mean {mean} and standard deviation {std} do not fit {channels} channels; accepted are one number for "
            "all or one for each, and deviations over 0."
        )
    return ModelCard(
        name=path.stem,
        title=f"{path.stem} ({architecture})" if architecture else path.stem,
        input_shape=(channels, height, width),
        classes=names,
        mean=mean,
        std=std,
        source=path.name,
    )


def load_architecture(name: str, state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """A torchvision network with these weights, and its number of classes, which the weights tell. Raises ModelError
    that names the first key that is missing, unknown or of another shape."""
    if name not in ARCHITECTURES:
        raise ModelError(f"Unknown architecture: received {name!r}, accepted are {', '.join(ARCHITECTURES)}.")
    helpers = any(key.split(".")[0] in HELPERS for key in state)
    classes = _classes_of(name, state, helpers)
    module = _bare(name, classes, helpers)
    expected = {key: tuple(t.shape) for key, t in module.state_dict().items()}
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    state = {**counters, **state}  # old files lack them
    _check_keys(name, expected, state)
    module.load_state_dict({key: _as_float(t) for key, t in state.items()}, assign=True)
    for head in HELPERS:
        if hasattr(module, head):
            setattr(module, head, None)
    module.requires_grad_(True)
    return module.eval(), classes


def _bare(name: str, classes: int, helpers: bool) -> nn.Module:
    """The network without memory for its weights."""
    import torchvision  # a second; ONNX files and samples do without

    options = {"aux_logits": helpers, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return module


def _classes_of(name: str, state: Mapping[str, Tensor], helpers: bool) -> int:
    """What the classifier's weights say: the first key whose shape changes with the number of classes."""
    two, three = (_bare(name, classes, helpers).state_dict() for classes in (2, 3))
    keys = [key for key, tensor in two.items() if tensor.shape != three[key].shape and key.split(".")[0] not in HELPERS]
    first = state.get(keys[0])
    if first is None or first.ndim != two[keys[0]].ndim:
        return len(two[keys[0]])  # the check of keys will say what is wrong
    return len(first)


def _check_keys(name: str, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """Raises ModelError for the first difference, in the order of the network, and counts the others."""
    wrong = []
    for key, shape in expected.items():
        if key not in state:
            wrong.append(f"{key} {_shown(shape)} is missing")
        elif tuple(state[key].shape) != shape:
            wrong.append(f"{key} has shape {_shown(state[key].shape)}, the network's is {_shown(shape)}")
    wrong += [f"it has no {key}; received one of {_shown(t.shape)}" for key, t in state.items() if key not in expected]
    if wrong:
        more = len(wrong) - 1
        rest = f", and {more} more difference{'s' if more > 1 else ''}" if more else ""
        raise ModelError(f"The weights do not fit {name}: {wrong[0]}{rest}.")


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _shown(shape: Any) -> str:
    return f"({', '.join(map(str, shape))})"


def guess_normalization(model: Model, images: Images) -> ModelCard:
    """`model`'s card with the usual normalization that answers most of these labelled images right; of equals the
    first, and the card's own comes first. Without labels, the one whose answers say most about which image they saw.

    Raises ModelError when the images are not of the model's input shape (channels, height, width).
    """
    channels, height, width = model.card.input_shape
    if images.x.shape[1:] != (height, width, channels):
        raise ModelError(
            f"The images are {_shown(images.x.shape[1:])} (height, width, channels); the model takes "
            f"{_shown((height, width, channels))}."
        )
    usual = [(mean, std) for mean, std in NORMALIZATIONS.values() if len(mean) in (1, channels)]
    cards = [model.card, *(model.card.with_(mean=mean, std=std) for mean, std in usual)]

    def score(card: ModelCard, count: int) -> float:
        spread = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))  # files are often sorted by class
        few = images.take(spread)
        return information(model.module, few, card) if few.y is None else accuracy(model.module, few, card, SCREENED)

    rough = {card: score(card, SCREENED) for card in dict.fromkeys(cards)}
    close = [card for card, share in rough.items() if share >= max(rough.values()) - MARGIN]
    return close[0] if len(close) == 1 else max(close, key=lambda card: score(card, MOST_IMAGES))


@torch.no_grad()
def information(module: nn.Module, images: Images, card: ModelCard) -> float:
    """Mutual information of images and answers in nats: large where each answer is sure and all together are varied.

    On pixels scaled as the network was trained on it is; on others its answers are unsure, or all the same.
    Unsupervised Classifiers, Mutual Information and 'Phantom Targets', Bridle et al. 1992.
    """
    parts = [module(to_tensor(images.x[i : i + SCREENED], card)) for i in range(0, len(images), SCREENED)]
    shares = torch.cat(parts).double().softmax(1)
    return float(torch.special.entr(shares.mean(0)).sum() - torch.special.entr(shares).sum(1).mean())
