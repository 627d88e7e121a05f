"""An integer file's ranges, weights and biases, each in the way that changes fewest answers on validation images.

Ranges are those of the calibration images, of channels as they are or made similar first. Weights are rounded to
nearest, or so that others make up for it, which matters more the more inputs a layer has. Biases may give channels
their means again. Without validation images the plainest way is taken.

Data-Free Quantization Through Weight Equalization and Bias Correction, Nagel et al. 2019; GPTQ, Frantar et al. 2023.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from core.engine.accurate import VALIDATED, Answers
from core.engine.context import Context, Report
from core.engine.formats import onnx_bias, onnx_equalize, onnx_facts, onnx_int8
from core.engine.formats.onnx_int8 import Calibrated, left_in_float
from core.engine.progress import stages
from core.engine.rounded import as_network, round_apart
from core.errors import ModelError
from core.options import Quantize

AUTO = ["minmax", "percentile"]  # entropy takes three times as long and was never better
EQUALIZED = 64  # calibration images that show the ranges of channels
CORRECTED = 32  # and those that show their means
Inputs = NDArray[np.float32]  # (n, c, h, w)


def calibrated(
    model: ModelProto, x: Inputs, options: Quantize, chosen: Collection[str], answers: Answers | None, report: Report
) -> Calibrated:
    """The file with the ranges of its values over the images x."""
    methods = [options.calibration] if options.calibration != "auto" else AUTO if answers else AUTO[:1]
    sources = [model]
    if options.equalize and answers:
        even = copy.deepcopy(model)
        sources += [even] if onnx_equalize.equalize(even, x[:EQUALIZED], chosen) else []
    ways = [(source, method) for source in sources for method in methods]
    parts = stages(report, [1.0] * len(ways))
    found = [onnx_int8.calibrate(source, x, method, part) for (source, method), part in zip(ways, parts, strict=True)]
    if len(found) == 1 or not answers:
        return found[0]
    return _best(found, options, chosen, answers)


def compensated(
    plain: Calibrated, options: Quantize, chosen: Collection[str], answers: Answers, context: Context
) -> tuple[Calibrated, str]:
    """With weights whose rounding others make up for, or as it is; and why that could not be tried, "" when it was."""
    try:
        rounded = as_network(plain.model)
    except ModelError as error:  # there are operators that the runtime knows and we do not
        return plain, f"Weights were rounded to nearest: {error}"
    named = rounded.nodes_of(plain.model).keys() & chosen
    images = context.calibration.take(slice(0, options.images))
    round_apart(rounded, named, weight_bits(options), replace(context, calibration=images))
    codes = {}
    for name, node in rounded.nodes_of(plain.model).items():
        if name in rounded.codes:
            integers, steps = rounded.codes[name][0].numpy(), rounded.codes[name][1].numpy()
            codes[node.input[1]] = (integers.T.copy() if onnx_facts.outputs_axis(node) else integers, steps)
    return _best([plain, replace(plain, codes=codes)], options, chosen, answers), ""


def corrected(file: ModelProto, answers: Answers, source: ModelProto, x: Inputs, report: Report) -> ModelProto:
    """`file` with biases that give channels the means of `source`, in float, or as it is."""
    better = copy.deepcopy(file)
    if not onnx_bias.correct_biases(better, source, x[:CORRECTED], report):
        return file
    before = answers.expected_loss(file, VALIDATED)
    return better if answers.expected_loss(better, VALIDATED) < before else file


def _best(ways: Sequence[Calibrated], options: Quantize, chosen: Collection[str], answers: Answers) -> Calibrated:
    """The first of equals: nothing is done that does not help."""
    leave, bits = left_in_float(ways[0].model, set(chosen)), weight_bits(options)
    files = (onnx_int8.write(way, leave, options.activations, bits) for way in ways)
    losses = [answers.expected_loss(file, VALIDATED) for file in files]
    return ways[losses.index(min(losses))]


def weight_bits(options: Quantize) -> int:
    """8, or 7 where this processor needs it."""
    return {"8": 8, "7": 7}.get(options.weights) or (8 if sums_are_exact() else 7)


def sums_are_exact(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor adds 8-bit products without overflow: VNNI, or not an x86 at all."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    flags = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    return "avx512_vnni" in flags or "avx_vnni" in flags
