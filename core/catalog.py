"""The menu: every technique's options, limits, help and paper, declared once.

The form on the Tune page, the check of a recipe, the YAML, the sensitivity sweep, the search space and the table in the
docs all read it. A technique's code is `core/engine/techniques/<key>.py` with one function

    apply(model, options, layers, context) -> Outcome

where `layers` maps a layer's name to its own value of the dial. A new technique is one such file and one entry here,
whose options record is in `core/options.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from core.errors import RecipeError
from core.options import (
    Distill,
    Factorize,
    FinetuneQuantized,
    PruneChannels,
    PruneWeights,
    Quantize,
    QuantizeWeights,
)


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
            ("calibration",),
            lambda o: (
                f"Prune weights {f'{o.sparsity:.0%}' if o.pattern == 'any' else o.pattern}"
                + (f" over {o.epochs} epochs" if o.epochs else "")
            ),
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
            "Splits a layer into two to four thinner ones; refused where that would be larger.",
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
            ("calibration", "validation"),
            lambda o: {"int8": "Quantize int8", "int8_dynamic": "Quantize int8 (dynamic)"}.get(o.mode, "Float16"),
            "Stores and computes with 8-bit integers; the first layers compute in float where that is faster.",
            "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, "
            "Jacob et al. 2018",
        ),
        Technique(
            "quantize_weights",
            "Quantize weights",
            "Quantize",
            QuantizeWeights,
            "file",
            "bits",
            32,
            ("calibration",),
            lambda o: f"Weights {o.bits} bits",
            "Stores weights in 3 to 8 bits and computes in float: a much smaller file, not a faster model.",
            "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, Frantar et al. 2023",
        ),
        Technique(
            "finetune_quantized",
            "Fine-tune quantized",
            "Quantize",
            FinetuneQuantized,
            "file",
            None,
            None,
            ("train", "validation", "labels"),
            lambda o: f"Fine-tune quantized {o.epochs} epochs",
            "Trains the file as it is, with its rounding in place: wins back what quantization lost, at the same size.",
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
