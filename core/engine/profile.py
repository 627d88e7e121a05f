"""What a model is made of and what each part costs: one row per layer, totals that equal the sums.

Counted: parameters as an export holds them, multiply-adds (one multiply-add is one MAC), activations, channel groups.
Measured: each layer's latency in ONNX Runtime, on the very file that candidates are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import onnx
import torch
from torch import nn

from core.engine.context import Report, silent
from core.engine.formats.onnx_facts import file_facts
from core.engine.graph import Structure, inputs_of, trace, width_of
from core.engine.models import Model
from core.engine.node_latency import NodeLatency, measure_nodes
from core.engine.operators import as_exported, exported_operators
from core.engine.surgery import Call, calls, kind_of
from core.layers import Layer, Profile

FLOAT = 4  # bytes
FOLDING = frozenset(("conv", "depthwise", "conv_transpose", "linear"))  # an export folds a norm into these


def profile(model: Model, file: Path, report: Report = silent) -> Profile:
    """Layers, groups and totals of `model`; latency and file size of `file`, its ONNX form.

    Raises ModelError when the file cannot be run.
    """
    report(0.0, "Counting parameters and MACs")
    example = torch.zeros(1, *model.card.input_shape)
    rows = calls(model.module, example)
    report(0.1, "Finding which channels belong together")
    structure = trace(model.module, example)
    timed = measure_nodes(file, model.card.input_shape, lambda f, m, **_: report(0.4 + 0.5 * f, m))
    counted = [_layer(row, structure, timed) for row in rows]
    with as_exported(model, file) as export:
        layers = (*as_stored(counted, export), *_rest(model.module, rows))
    report(0.95, "Measuring peak memory")
    return Profile(
        layers=layers,
        groups=structure.groups,
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        peak_bytes=file_facts(file, model.card.input_shape).peak_bytes,
        file_bytes=file.stat().st_size,
        latency_ms=timed.latency_ms,
        operators=exported_operators(model, file, layers),
    )


def _layer(row: Call, structure: Structure, timed: NodeLatency) -> Layer:
    layer = row.layer
    kernel, groups = (1, 1), 1
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        kernel, groups = (layer.kernel_size[0], layer.kernel_size[1]), layer.groups
    return Layer(
        name=row.path,
        kind=kind_of(layer),
        params=sum(p.numel() for p in layer.parameters(recurse=False)),
        macs=count_macs(row),
        in_channels=inputs_of(row) or width_of(layer),
        out_channels=width_of(layer),
        kernel=kernel,
        groups=groups,
        bias=isinstance(getattr(layer, "bias", None), torch.Tensor),
        output_shape=row.output_shape,
        activation_bytes=FLOAT * prod(row.output_shape),
        group=structure.group_of[row.path],
        inputs=structure.inputs[row.path],
        latency_ms=timed.layers.get(row.path),
        input_shape=row.input_shape,
    )


def as_stored(layers: Sequence[Layer], file: Path) -> Iterator[Layer]:
    """The rows, a norm that is no node of `file` with what is left of it there: the bias of the layer that it was
    folded into, or nothing where that has one anyway."""
    nodes = onnx.load(file, load_external_data=False).graph.node
    norms = {node.name for node in nodes if node.op_type == "BatchNormalization"}
    for i, layer in enumerate(layers):
        if layer.kind == "norm" and layer.name not in norms:
            into = next((x for x in reversed(layers[:i]) if x.kind in FOLDING and x.group == layer.group), None)
            layer = replace(layer, params=0 if into and into.bias else layer.out_channels)
        yield layer


def count_macs(row: Call) -> int:
    """Multiply-adds of one image: each weight works once per output pixel (per input pixel where it is transposed)."""
    layer = row.layer
    if "weight" in layer._buffers:  # a shortcut that only copies
        return 0
    if isinstance(layer, nn.ConvTranspose2d):
        return row.times * layer.weight.numel() * prod(row.input_shape[1:])
    if isinstance(layer, nn.modules.conv._ConvNd):
        return row.times * layer.weight.numel() * prod(row.output_shape[1:])
    if isinstance(layer, nn.Linear):
        return row.times * layer.weight.numel() * prod(row.output_shape[:-1])
    return 0


def _rest(module: nn.Module, rows: tuple[Call, ...]) -> list[Layer]:
    """Parameters outside the layers that ran, one row for each module that holds them, so that the total is whole."""
    seen = {id(p) for row in rows for p in row.layer.parameters(recurse=False)}
    found = []
    for path, part in module.named_modules():
        left = {id(p): p for p in part.parameters(recurse=False) if id(p) not in seen}
        seen |= left.keys()
        if left:
            count = sum(p.numel() for p in left.values())
            found.append(Layer(path or "(model)", "other", count, 0, 0, 0, (1, 1), 1, False, (), 0, "", ()))
    return found
