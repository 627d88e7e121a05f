"""What every technique is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from core.candidate import Skip
from core.cards import ModelCard
from core.engine.data import Images
from core.engine.schedule import Epoch

Report = Callable[..., None]  # report(fraction in [0, 1], message, **numbers); raises Cancelled


def silent(fraction: float, message: str, **numbers: object) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Context:
    """The surroundings of one step. The test part of the data is not here: no technique may see it."""

    card: ModelCard
    train: Images
    calibration: Images  # may come without labels
    validation: Images
    flip: bool  # whether a mirrored image keeps its class
    teacher: nn.Module | None  # the original model, in evaluation mode; None for a file step without one
    seed: int = 0
    report: Report = silent
    network: nn.Module | None = None  # for a file step: the network that was exported
    folder: Path | None = None  # scratch: checkpoints of training go here


@dataclass(frozen=True)
class Outcome:
    """`model` is an nn.Module or an onnx.ModelProto, as the technique's `acts_on` says."""

    model: Any
    skipped: tuple[Skip, ...] = ()
    curve: tuple[Epoch, ...] = field(default=())
