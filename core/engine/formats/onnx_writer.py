"""torch module → ONNX file through `torch.export`, batch free, weights inside, every node named after its layer.

The node of layer L is called L, so the graph viewer, measured latency and settings per layer share one set of names.
What the exporter adds for its own debugging (stack traces with paths of this machine among it) is left out, and the
same module gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import nn
from torch.utils import _pytree

from core.cards import ModelCard
from core.engine import runtime, softmax
from core.engine.context import Report, silent
from core.engine.formats import onnx_gate, onnx_names
from core.engine.formats.onnx_names import Names
from core.errors import ModelError

LARGEST_DIFFERENCE = 1e-3  # between torch and the file, as a share of the largest logit
PRODUCER = "cnn-studio"
CLASSES = "pkg.torch.onnx.class_hierarchy"


def export(
    module: nn.Module,
    card: ModelCard,
    path: Path,
    report: Report = silent,
    about: Mapping[str, str] | None = None,
) -> float:
    """Write `module` to `path` and return the seconds it took. Input (n, *card.input_shape) float32, any n.

    `about` joins the file's metadata. Raises ModelError when the network cannot be exported; it is not changed.
    """
    began = time.perf_counter()
    report(0.0, "Writing the ONNX file")
    proto = _translate(module, card)
    if card.probabilities:
        softmax.put_back(proto)
    name_nodes(proto)
    _strip(proto)
    describe(proto, card, about or {})
    save(proto, path)
    report(1.0, "ONNX file written")
    return time.perf_counter() - began


def save(proto: ModelProto, path: Path) -> None:
    """Write deterministically and atomically."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(proto.SerializeToString(deterministic=True))
    os.replace(part, path)


def describe(proto: ModelProto, card: ModelCard, about: Mapping[str, str]) -> None:
    """What a program needs to feed the file and to read its answers, as metadata of the file."""
    proto.producer_name, proto.producer_version = PRODUCER, ""
    facts = {
        "name": card.name,
        "mean": json.dumps(list(card.mean)),
        "std": json.dumps(list(card.std)),
        "input": "(pixels / 255 - mean) / std, channels first",
        "classes": json.dumps(list(card.classes)),
        **about,
    }
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, facts)


def verify(module: nn.Module, card: ModelCard, file: Path, x: NDArray[np.float32]) -> float:
    """Largest |torch - ONNX Runtime| over the first output for x (n, c, h, w).

    Raises ModelError when shapes differ, a value is not finite, or the difference is over 0.1 % of the largest logit.
    """
    with torch.no_grad():
        answers = _pytree.tree_leaves(module(torch.from_numpy(x)))[0]
        expected = (answers.softmax(1) if card.probabilities else answers).numpy()
    found = runtime.run(runtime.open_file(file), x)
    if found.shape != expected.shape:
        raise ModelError(f"The exported file answers with shape {found.shape}; the network's is {expected.shape}.")
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        raise ModelError("The exported file answers with numbers that are not finite; the network has overflowed.")
    difference = float(np.abs(found - expected).max())
    allowed = LARGEST_DIFFERENCE * max(float(np.abs(expected).max()), 1e-6)
    if difference > allowed:
        raise ModelError(f"The exported file differs from the network by {difference:.2e}; accepted is {allowed:.2e}.")
    return difference


def free_batch(source: Path, path: Path) -> bool:
    """Copy an uploaded file to `path` with its nodes named after their layers, if it takes any number of images.

    Weights and operators stay as they are. Returns False, and writes nothing, when the batch size is fixed.
    """
    proto = onnx_gate.open_model(source)
    stored = {tensor.name for tensor in proto.graph.initializer}
    images = next(value for value in proto.graph.input if value.name not in stored)
    axes = images.type.tensor_type.shape.dim
    if not axes or axes[0].HasField("dim_value") or images.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return False
    name_nodes(proto)
    save(proto, path)
    return True


def name_nodes(proto: ModelProto) -> None:
    """Name every node: a layer's node gets the layer's path, others their place and what they do. Names are unique."""
    names = Names(proto.graph.node)
    weighted = (n.op_type in onnx_names.WEIGHTED for n in proto.graph.node)
    layers = [names.of_layer(n) if w else "" for n, w in zip(proto.graph.node, weighted, strict=True)]
    taken = set(layers)
    for node, layer in zip(proto.graph.node, layers, strict=True):
        node.name = layer or _free(_place(node), taken)
        taken.add(node.name)


def _place(node: NodeProto) -> str:
    """'layer1.0.relu': the module that computes it and the operator; a layer of torch alone has the layer's path."""
    module, kind = onnx_names.written(node), node.op_type.lower()
    classes = next((entry.value for entry in node.metadata_props if entry.key == CLASSES), "")
    own = re.findall(r"'([^']*)'", classes)[-2:-1]
    if module and own and own[0].startswith("torch.nn.modules.") and ".container." not in own[0]:
        return module
    return f"{module}.{kind}" if module else kind


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _translate(module: nn.Module, card: ModelCard) -> ModelProto:
    """The exporter's own result, its outputs named `logits`, or `output_0` … when there are several."""
    example = torch.zeros(2, *card.input_shape)
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), _quiet():
            leaves = _pytree.tree_leaves(module(example))
            names = ["logits"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=names,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = re.sub(r"\s+", " ", str(error.__cause__ or error)).strip()[:200]
        raise ModelError(f"The network cannot be exported to ONNX: {reason}.") from error
    finally:
        module.train(training)
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own insides; nothing of that is for a user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|copyreg")
            yield
    finally:
        log.setLevel(level)


def _strip(proto: ModelProto) -> None:
    """Remove the exporter's notes: they hold paths, and are a third of a small file."""
    graph = proto.graph
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info, graph):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.value_info[:]  # shapes can be inferred again
    graph.name = PRODUCER
