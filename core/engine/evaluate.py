"""Scores of an exported file, all measured in ONNX Runtime on the file the user downloads.

Shares come with their Wilson 95 % interval (Wilson 1927; Brown, Cai and DasGupta 2001), which holds its promise near 0
and 1 and for few images, where the usual ± does not.
"""

from __future__ import annotations

import os
from math import sqrt
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from core.candidate import Latency, Scores, Share
from core.cards import ModelCard
from core.engine import runtime
from core.engine.context import Report, silent
from core.engine.data import Images, to_input
from core.engine.formats import onnx_facts, onnx_names, onnx_writer
from core.errors import ModelError

BATCH = 250
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
ERROR_IMAGES = 64  # calibration images for the error of each layer
SCALED = 1.2  # times; int8 alone changes a channel by a few percent
LAYERS = {*onnx_names.WEIGHTED, "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"}

Logits = NDArray[np.float32]


def predict(file: Path, images: Images, card: ModelCard, report: Report = silent, threads: int | None = None) -> Logits:
    """First output of `file` for every image: (n, classes) float32. Raises ModelError when it is not finite."""
    session = runtime.open_file(file, threads)
    parts = []
    for start in range(0, len(images), BATCH):
        report(start / len(images), f"{start:,} of {len(images):,} images")
        parts.append(runtime.run(session, to_input(images.x[start : start + BATCH], card)))
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise ModelError(f"{file.name} answers with numbers that are not finite on {len(images)} images.")
    report(1.0, f"{len(images):,} images")
    return logits


def save_predictions(path: Path, logits: Logits) -> None:
    """Keep (n, classes) logits; the file is whole or not there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, logits=logits)
    os.replace(part, path)


def score(
    file: Path,
    logits: Logits,
    original: Logits,
    images: Images,
    card: ModelCard,
    latency: tuple[Latency, ...],
) -> Scores:
    """Scores of `file`, whose answers on `images` are `logits` and the original file's `original`.

    Answers are the largest along the class axis; where a model answers per position, an image's share is the mean over
    its positions. Accuracy needs labels, one per image.
    """
    if logits.shape != original.shape:
        raise ModelError(f"{file.name} answers with shape {logits.shape}; the original's is {original.shape}.")
    answers = logits.argmax(1)
    hits = answers == images.y if images.y is not None and answers.ndim == 1 else None
    facts = onnx_facts.file_facts(file, card.input_shape)
    per_class: tuple[Share, ...] = ()
    if hits is not None and images.y is not None:
        per_class = tuple(share(hits[images.y == index]) for index in range(len(card.classes)))
    return Scores(
        accuracy=None if hits is None else share(hits),
        agreement=share((answers == original.argmax(1)).reshape(len(answers), -1).mean(1)),
        size_bytes=file.stat().st_size,
        params=facts.params,
        macs=facts.macs,
        peak_bytes=facts.peak_bytes,
        latency=latency,
        per_class=per_class,
    )


def share(hits: NDArray[np.bool_] | NDArray[np.float64]) -> Share:
    """The mean of n values in [0, 1] with its Wilson 95 % interval; no images, no knowledge: 0 to 1.

    >>> share(np.array([1] * 8 + [0] * 2))
    Share(value=0.8, low=0.4901624715366418, high=0.9433178485456247, count=10)
    """
    count = len(hits)
    if count == 0:
        return Share(0.0, 0.0, 1.0, 0)
    value = float(np.mean(hits))
    scale = 1 + Z95**2 / count
    middle = (value + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2))
    return Share(value, max(0.0, middle - half), min(1.0, middle + half), count)


def layer_error(original: Path, candidate: Path, images: Images, card: ModelCard) -> dict[str, float]:
    """Layer → |candidate - original| / |original| (L2 over all images) of the layer's own output, in file order.

    Outputs are taken past the ReLU that follows, which quantization merges into the layer. Layers are matched by the
    names of their nodes; one that was split is compared at its last part. A changed shape cannot be compared. Channels
    that quantization scaled up, for the layers behind to scale down, are scaled down first.
    """
    x = to_input(images.x[:ERROR_IMAGES], card)
    before, after = onnx.load(original), onnx.load(candidate)
    pairs = _pairs(before, after)
    if not pairs:  # an uploaded file, with its own names
        onnx_writer.name_nodes(before)
        pairs = _pairs(before, after)
    if not pairs:
        return {}
    first = onnx_facts.run_for(before, list({name for name, _ in pairs.values()}), x)
    second = onnx_facts.run_for(after, list({name for _, name in pairs.values()}), x)
    errors, integer = {}, any(node.op_type == "QuantizeLinear" for node in after.graph.node)
    for layer, (name, other) in pairs.items():
        there, here = first[name].astype(np.float64), second[other].astype(np.float64)
        if there.shape == here.shape and (scale := float(np.linalg.norm(there))):
            here = scaled_back(there, here) if integer and there.ndim == 4 else here
            errors[layer] = float(np.linalg.norm(here - there)) / scale
    return errors


def scaled_back(there: NDArray[np.float64], here: NDArray[np.float64]) -> NDArray[np.float64]:
    """`here` (n, c, h, w) with the channels divided that are larger than `there` by more than rounding can make them:
    equalization (`onnx_equalize.py`) multiplies by 1 to 16."""
    gain = (there * here).sum((0, 2, 3)) / np.maximum((there**2).sum((0, 2, 3)), 1e-30)
    back: NDArray[np.float64] = here / np.where(gain > SCALED, gain, 1.0)[:, None, None]
    return back


def _pairs(before: ModelProto, after: ModelProto) -> dict[str, tuple[str, str]]:
    """Layer → its value in either file, for the layers that are in both."""
    others = layer_values(after)
    return {layer: (name, found) for layer, name in layer_values(before).items() if (found := _match(layer, others))}


def _match(layer: str, others: dict[str, str]) -> str:
    """The value of `layer` in another file, or of the last of the parts it was split into; "" when it is gone."""
    parts = [name for name in others if name.startswith(f"{layer}.") and name[len(layer) + 1 :].isdigit()]
    last = max(parts, key=lambda name: int(name.rpartition(".")[2]), default="")
    return others.get(layer, others.get(last, ""))


def layer_values(proto: ModelProto) -> dict[str, str]:
    """Layer → the value that its node makes, past its activation and past quantization, in file order."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    values = {node.name: node.output[0] for node in proto.graph.node if node.op_type in LAYERS}
    for layer, name in values.items():
        following = readers.get(name, [])
        if len(following) == 1 and following[0].op_type in ("Relu", "Clip"):
            name = following[0].output[0]
        values[layer] = _rounded(name, readers)
    return values


def _rounded(name: str, readers: dict[str, list[onnx.NodeProto]]) -> str:
    """The value past its quantization; the value itself where its integers are read in another way than they came."""
    coded = readers.get(name, [])
    floats = readers.get(coded[0].output[0], []) if len(coded) == 1 and coded[0].op_type == "QuantizeLinear" else []
    same = len(floats) == 1 and floats[0].op_type == "DequantizeLinear" and floats[0].input[1:] == coded[0].input[1:]
    return floats[0].output[0] if same else name
