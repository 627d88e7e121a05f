"""What is known about a model and about a data set, as plain frozen records that travel as JSON.

A card holds no tensors and no paths, so the web process, the workers and the exported bundle all read the same one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

# How people scale pixels: name → (mean, std) of pixels / 255, per channel or one for all.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "0 to 1": ((0.0,), (1.0,)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST": ((0.1307,), (0.3081,)),
    "-1 to 1": ((0.5,), (0.5,)),
    "0 to 255": ((0.0,), (1 / 255,)),
}


class _Json:
    """`to_json` and `from_json` for a flat frozen dataclass whose sequences are tuples."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Unknown keys are ignored, so that a card written by a later version still opens."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class ModelCard(_Json):
    """A model's contract: `input = (pixels / 255 - mean) / std`, laid out (n, *input_shape)."""

    name: str
    title: str
    input_shape: tuple[int, int, int]  # channels, height, width
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.0,)  # per channel, or one for all
    std: tuple[float, ...] = (1.0,)
    task: str = "classification"
    data: str = ""  # the data set it was trained for: a sample's name or ""
    source: str = ""  # who made it, or the file it came from
    licence: str = ""
    description: str = ""
    accuracy: float | None = None  # top-1 on the test split named by `data`, as published by `source`
    command: str = ""  # makes the checkpoint again
    probabilities: bool = False  # the file ends with a Softmax, which the network in the studio leaves out


@dataclass(frozen=True)
class DataCard(_Json):
    """A data set and its split. `hash` covers every pixel and label, so two equal hashes are the same split."""

    name: str
    title: str
    shape: tuple[int, int, int]  # channels, height, width
    classes: tuple[str, ...]
    train: int  # number of images in each part; the four never overlap
    calibration: int
    validation: int
    test: int
    labelled: bool
    hash: str
    flip: bool = False  # whether a mirrored image keeps its class: used by augmentation
    source: str = ""
    licence: str = ""
    description: str = ""
