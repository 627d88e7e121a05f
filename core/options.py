"""The options of every technique, each declared once with its default, its limits and a sentence of help.

`core/catalog.py` puts them on the menu; a technique's `apply` gets one of these records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: tuple[Any, ...] = (),
    unit: str = "",
    later: bool = False,
) -> Any:
    """One option of a technique. A share is a fraction in [0, 1] with unit '%': screens multiply by 100.

    An option that came `later` leaves a recipe that does not use it its id.
    """
    limits = {"low": low, "high": high, "step": step, "choices": choices}
    return field(default=default, metadata={"help": help, **limits, "unit": unit, "later": later})


@dataclass(frozen=True)
class PruneChannels:
    ratio: float = option(
        0.3,
        "Share of channels removed. At 100 % a residual block disappears; elsewhere one block of channels stays.",
        low=0.0,
        high=1.0,
        step=0.01,
        unit="%",
    )
    criterion: str = option(
        "l2", "How a channel's importance is scored.", choices=("l1", "l2", "bn_scale", "taylor", "fpgm")
    )
    scope: str = option(
        "layer",
        "layer: remove the same share everywhere. global: rank all channels of the network together.",
        choices=("layer", "global"),
    )
    multiple: int = option(
        8, "Widths are rounded to this multiple, since runtimes compute in blocks.", choices=(1, 2, 4, 8, 16)
    )
    repair: bool = option(
        True, "Solve the layers that remain again, in closed form, so that they make up for what was removed."
    )
    reestimate: bool = option(
        True, "Measure BatchNorm statistics again on the calibration images; kept only if agreement rises."
    )


@dataclass(frozen=True)
class PruneWeights:
    sparsity: float = option(0.5, "Share of weights set to zero.", low=0.0, high=0.99, step=0.01, unit="%")
    criterion: str = option("lamp", "How a weight's importance is scored.", choices=("magnitude", "lamp"))
    scope: str = option(
        "global",
        "global: rank all weights of the network together. layer: the same share everywhere.",
        choices=("layer", "global"),
    )
    pattern: str = option(
        "any",
        "any, or N:M: of every M neighbouring input channels N weights stay; the pattern then sets the sparsity.",
        choices=("any", "2:4", "1:4"),
    )
    repair: bool = option(True, "Solve the weights that remain again, so that they make up for those that are gone.")
    epochs: int = option(
        0,
        "Passes over the training images; zeros grow for three fifths of them. 0: all at once, then repaired.",
        low=0,
        high=100,
        step=1,
        unit="epochs",
        later=True,
    )
    learning_rate: float = option(
        0.02, "Peak learning rate of that training; follows a cosine down.", low=1e-5, high=0.5, step=0.001, later=True
    )


@dataclass(frozen=True)
class Factorize:
    rank: float = option(0.5, "Share of the full rank that is kept.", low=0.05, high=1.0, step=0.01, unit="%")
    method: str = option(
        "spatial_svd",
        "How a convolution is split; linear layers always by SVD. cp is for teaching: its terms may grow against each "
        "other, and its four thin layers are slow.",
        choices=("spatial_svd", "tucker2", "cp"),
    )
    ranks: str = option(
        "share",
        "share: that of the rank above, everywhere. evbmf: what stands out from noise in each layer's weights, without "
        "looking at accuracy; often too little or nearly everything. A layer's own rank comes first.",
        choices=("share", "evbmf"),
        later=True,
    )
    weighted: bool = option(True, "Keep what matters most on the calibration images; used by both SVDs.")
    repair: bool = option(True, "Solve the last factor and the layers behind it again, so that they make up for it.")


@dataclass(frozen=True)
class Quantize:
    bits: int = option(8, "8: integer. 32: leave in float.", choices=(8, 32), unit="bits")
    mode: str = option(
        "int8",
        "int8 with calibrated activations, int8 measured at run time, or 16-bit float.",
        choices=("int8", "int8_dynamic", "float16"),
    )
    calibration: str = option(
        "minmax",
        "How the range of activations is found. auto: minmax or percentile, by the validation answers that may change.",
        choices=("auto", "minmax", "percentile", "entropy"),
    )
    equalize: bool = option(
        True,
        "Give the channels of a layer similar ranges first; kept only if fewer validation answers may change.",
    )
    compensate: bool = option(
        True,
        "Round weights so that others make up for it; kept only if fewer validation answers may change.",
        later=True,
    )
    correct: bool = option(
        True,
        "Shift biases so that every channel keeps its mean; kept only if fewer validation answers may change.",
        later=True,
    )
    agreement: float = option(
        0.0,
        "Least share of validation answers that stay: layers that cost too many for their time stay in float. 0: any.",
        low=0.0,
        high=1.0,
        step=0.005,
        unit="%",
        later=True,
    )
    images: int = option(256, "Calibration images used.", low=16, high=512, step=16, unit="images")
    activations: str = option(
        "uint8", "Type of activations; int8 is much slower on x86 processors.", choices=("uint8", "int8")
    )
    weights: str = option(
        "auto",
        "8 bits, or 7 where the processor's 8-bit sums would overflow (AVX2 without VNNI).",
        choices=("auto", "8", "7"),
    )
    nodes: str = option(
        "auto",
        "auto: the first layers compute in float where that is measured to be faster, as with Swish. all: none does.",
        choices=("auto", "all"),
    )


@dataclass(frozen=True)
class QuantizeWeights:
    bits: int = option(4, "Bits of a weight in the file. 32: leave in float.", choices=(3, 4, 5, 6, 8, 32), unit="bits")


@dataclass(frozen=True)
class FinetuneQuantized:
    epochs: int = option(3, "Passes over the training images.", low=1, high=100, step=1, unit="epochs")
    learning_rate: float = option(0.005, "Peak learning rate; follows a cosine down.", low=1e-5, high=0.5, step=0.001)
    shift: int = option(4, "Largest random shift of a training image.", low=0, high=16, step=1, unit="px")


@dataclass(frozen=True)
class Distill:
    epochs: int = option(5, "Passes over the training images.", low=1, high=100, step=1, unit="epochs")
    learning_rate: float = option(0.02, "Peak learning rate; follows a cosine down.", low=1e-5, high=0.5, step=0.001)
    teacher: bool = option(True, "Learn from the original model's answers as well as from the labels.")
    alpha: float = option(0.7, "Weight of the teacher against the labels.", low=0.0, high=1.0, step=0.05, unit="%")
    temperature: float = option(4.0, "How much the teacher's answers are softened.", low=1.0, high=20.0, step=0.5)
    shift: int = option(4, "Largest random shift of a training image.", low=0, high=16, step=1, unit="px")
    loss: str = option(
        "kl",
        "How the two answers are compared: divergence, correlation, or the squared difference of what they come from.",
        choices=("kl", "dist", "mse"),
    )
    schedule: str = option(
        "cosine",
        "cosine: from the peak rate down. onecycle: up over the first quarter, then down.",
        choices=("cosine", "onecycle"),
        later=True,
    )
    patience: int = option(
        0,
        "Ends after so many epochs that were no better on validation images. 0: never.",
        low=0,
        high=20,
        step=1,
        unit="epochs",
        later=True,
    )
    views: int = option(
        0,
        "Versions of each image; the teacher answers each once and later epochs go without it. 0: a new one each time.",
        low=0,
        high=16,
        step=1,
        unit="views",
        later=True,
    )
    hint: float = option(
        0.0,
        "Weight of what teacher and student make half way, compared at every size of map; needs views at 0.",
        low=0.0,
        high=10.0,
        step=0.1,
        later=True,
    )
    blend: bool = option(
        False,
        "Mix images in pairs: the teacher knows its training images by heart, mixtures it does not. Needs views at 0.",
        later=True,
    )
    head_first: bool = option(
        False,
        "Fit the last layer alone first, to what is learned from; kept only if validation answers get better.",
        later=True,
    )
