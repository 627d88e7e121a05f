"""The menu: every technique's options, limits, help and paper, declared once.

The form on the Tune page, the check of a recipe, the YAML, the sensitivity sweep, the search space and the table in the
docs all read it. A technique's code is `core/engine/techniques/<key>.py` with one function

    apply(model, options, layers, context) -> Outcome

where `layers` maps a layer's name to its own value of the dial. A new technique is one such file and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from core.errors import RecipeError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: tuple[Any, ...] = (),
    unit: str = "",
) -> Any:
    """One option of a technique. A share is a fraction in [0, 1] with unit '%': screens multiply by 100."""
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "step": step, "choices": choices, "unit": unit},
    )


@dataclass(frozen=True)
class PruneChannels:
    ratio: float = option(0.3, "Share of channels removed.", low=0.0, high=0.95, step=0.01, unit="%")
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


@dataclass(frozen=True)
class Factorize:
    rank: float = option(0.5, "Share of the full rank that is kept.", low=0.05, high=1.0, step=0.01, unit="%")
    method: str = option(
        "spatial_svd",
        "How a convolution is split; linear layers are always split by SVD.",
        choices=("spatial_svd", "tucker2"),
    )
    weighted: bool = option(True, "Keep what matters most on the calibration images; used by both SVDs.")


@dataclass(frozen=True)
class Quantize:
    bits: int = option(8, "8: integer. 32: leave in float.", choices=(8, 32), unit="bits")
    mode: str = option(
        "int8",
        "int8 with calibrated activations, int8 measured at run time, or 16-bit float.",
        choices=("int8", "int8_dynamic", "float16"),
    )
    calibration: str = option(
        "minmax", "How the range of activations is found.", choices=("minmax", "percentile", "entropy")
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


@dataclass(frozen=True)
class Distill:
    epochs: int = option(5, "Passes over the training images.", low=1, high=100, step=1, unit="epochs")
    learning_rate: float = option(0.02, "Peak learning rate; follows a cosine down.", low=1e-5, high=0.5, step=0.001)
    teacher: bool = option(True, "Learn from the original model's answers as well as from the labels.")
    alpha: float = option(0.7, "Weight of the teacher against the labels.", low=0.0, high=1.0, step=0.05, unit="%")
    temperature: float = option(4.0, "How much the teacher's answers are softened.", low=1.0, high=20.0, step=0.5)
    shift: int = option(4, "Largest random shift of a training image.", low=0, high=16, step=1, unit="px")
    loss: str = option("kl", "How the two answers are compared: divergence or correlation.", choices=("kl", "dist"))


@dataclass(frozen=True)
class Technique:
    """One entry of the menu."""

    key: str  # file name in core/engine/techniques
    title: str
    tab: str  # the Tune tab that holds it
    options: type
    acts_on: str  # "model": nn.Module in and out; "file": ONNX in and out, after export
    dial: str | None  # the option that each layer may have its own value of
    neutral: Any  # the dial's value that leaves a layer as it is
    needs: tuple[str, ...]  # parts of the data it reads: "train", "calibration", "validation", "labels"
    summary: Callable[[Any], str]  # options → 'Prune channels 30 %'
    help: str
    paper: str


CATALOG: dict[str, Technique] = {
    entry.key: entry
    for entry in (
        Technique(
            "prune_channels",
            "Prune channels",
            "Prune",
            PruneChannels,
            "model",
            "ratio",
            0.0,
            ("calibration",),
            lambda o: f"Prune channels {o.ratio:.0%}",
            "Removes whole channels, together with everything that is coupled to them: smaller and faster.",
            "DepGraph: Towards Any Structural Pruning, Fang et al. 2023",
        ),
        Technique(
            "prune_weights",
            "Prune weights",
            "Prune",
            PruneWeights,
            "model",
            "sparsity",
            0.0,
            (),
            lambda o: f"Prune weights {o.sparsity:.0%}" if o.pattern == "any" else f"Prune weights {o.pattern}",
            "Sets single weights to zero: a smaller download once compressed, not a faster model on this runtime.",
            "Layer-adaptive Sparsity for the Magnitude-based Pruning (LAMP), Lee et al. 2021",
        ),
        Technique(
            "factorize",
            "Factorize",
            "Factorize",
            Factorize,
            "model",
            "rank",
            1.0,
            ("calibration",),
            lambda o: f"Factorize to rank {o.rank:.0%}",
            "Splits a layer into two or three thinner ones; refused where that would be larger.",
            "Speeding up Convolutional Neural Networks with Low Rank Expansions, Jaderberg et al. 2014; "
            "Compression of Deep CNNs for Fast and Low Power Mobile Applications, Kim et al. 2016",
        ),
        Technique(
            "distill",
            "Distill",
            "Distill",
            Distill,
            "model",
            None,
            None,
            ("train", "validation", "labels"),
            lambda o: f"Distill {o.epochs} epochs" if o.teacher else f"Fine-tune {o.epochs} epochs",
            "Trains the changed model to answer like the original; the best epoch by validation is kept.",
            "Distilling the Knowledge in a Neural Network, Hinton et al. 2015",
        ),
        Technique(
            "quantize",
            "Quantize",
            "Quantize",
            Quantize,
            "file",
            "bits",
            32,
            ("calibration",),
            lambda o: {"int8": "Quantize int8", "int8_dynamic": "Quantize int8 (dynamic)"}.get(o.mode, "Float16"),
            "Stores and computes with 8-bit integers instead of 32-bit floats.",
            "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, "
            "Jacob et al. 2018",
        ),
    )
}


def option_fields(entry: Technique) -> dict[str, Field[Any]]:
    """Option name → dataclass field, whose metadata holds help, low, high, step, choices and unit."""
    return {f.name: f for f in fields(entry.options)}


def check_value(entry: Technique, name: str, value: Any) -> Any:
    """The value in the option's own type. Raises RecipeError that names the option, what came and what is accepted."""
    known = option_fields(entry)
    if name not in known:
        raise RecipeError(f"{entry.key} has no option {name!r}; accepted are {', '.join(known)}.")
    spec = known[name]
    assert spec.default is not MISSING
    kind, limits = type(spec.default), spec.metadata
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if limits["choices"]:
        accepted, fits = ", ".join(map(str, limits["choices"])), value in limits["choices"]
    elif kind is bool:
        accepted, fits = "true or false", isinstance(value, bool)
    else:
        accepted = f"{limits['low']} to {limits['high']}"
        fits = type(value) is kind and limits["low"] <= value <= limits["high"]
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{entry.key}: {name} was {value!r}; accepted is {accepted}.")
    return value


def check_options(entry: Technique, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every value checked. Raises RecipeError."""
    return {str(name): check_value(entry, str(name), value) for name, value in options.items()}
