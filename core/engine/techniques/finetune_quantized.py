"""Fine-tuning of the exported file as it is: what is rounded in it stays rounded while it trains.

The file itself becomes the network that trains: every value that it rounds is rounded, its weights stand on the grids
that calibration or GPTQ found, and gradients pass the rounding as if it were not there. What has been learned goes back
into the same file as other codes, so nothing has to be exported, calibrated or approximated again. Convolutions train
with a BatchNorm behind them; once folded it is another scale for each channel's grid, so scales are learned as well.
Weights that earlier steps pruned stay zero; normalization that is left in the file keeps its statistics.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018;
Estimating or Propagating Gradients Through Stochastic Neurons, Bengio et al. 2013.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.candidate import Skip
from core.engine.batchnorm import insert_batchnorm
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.formats import onnx_codes, onnx_gate, onnx_rounding
from core.engine.formats.onnx_codes import Stored
from core.engine.formats.onnx_reader import read_model
from core.engine.schedule import Plan, best_merit
from core.engine.teaching import checkpoint_of, learn, make_lesson
from core.engine.zeros import surviving
from core.errors import RecipeError
from core.options import FinetuneQuantized

KEY = "finetune_quantized"
KINDS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
TEMPERATURE = 2.0  # rounded networks learn worse from softer answers (Distiller: 3-bit ResNet-20 collapses at 5)
CLIP = 1.0
SAMPLE = 512  # images for BatchNorm statistics


def apply(model: ModelProto, options: FinetuneQuantized, layers: Mapping[str, object], context: Context) -> Outcome:
    """A copy of `model` with weights and biases trained; the best epoch is kept, and that may be the file as it came.

    Raises RecipeError for files whose rounding is not in them, DataError without labels and teacher.
    """
    _check(model)
    result = ModelProto()
    result.CopyFrom(model)
    twin, stored = onnx_codes.in_floats(model)
    network = read_model(twin, context.card.input_shape, rounded=True).module
    parts = _free(network, stored, context.network)
    skipped = tuple(Skip(KEY, s.layer, "Kept: it has no weights of its own.") for s in stored if _lost(s, parts))
    lesson = make_lesson(context, KEY, teacher=context.teacher is not None, temperature=TEMPERATURE)
    plan = Plan(
        options.epochs,
        options.learning_rate,
        weight_decay=0.0,
        shift=options.shift,
        flip=context.flip,
        clip=CLIP,
        seed=context.seed,
    )
    path = checkpoint_of(network, KEY, options, context)
    sample = to_tensor(lesson.train.x[:SAMPLE], context.card)
    normed = insert_batchnorm(network, sample, _scalable(parts))
    curve = learn(network, lesson, plan, context, checkpoint=path, forward=_Exact(network))
    if best_merit(curve[1:], plan) >= curve[0].merit:
        _put_back(result, network, parts, normed)
    return Outcome(result, skipped, curve)


def _scalable(parts: list[Stored]) -> set[str]:
    """Layers whose file can take a factor and a shift for each output channel: what BatchNorm is, once it is folded."""
    shifted = {found.layer for found in parts if found.part == "bias"}
    weights = [found for found in parts if found.part == "weight" and found.layer in shifted]
    return {w.layer for w in weights if w.grid is None or w.grid.scale.size == w.grid.scale.shape[0] > 1}


@torch.no_grad()
def _put_back(result: ModelProto, network: nn.Module, parts: list[Stored], normed: Collection[str]) -> None:
    """What was learned goes into the file: codes, and with them the scales that the normalization comes to."""
    for found in parts:
        layer: Any = network.get_submodule(found.layer)
        if found.layer not in normed:
            onnx_codes.put(result, found, getattr(layer, found.part).numpy())
            continue
        layer, norm = layer.children()
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        value = getattr(layer, found.part) * factor.reshape(-1, *[1] * (getattr(layer, found.part).ndim - 1))
        if found.part == "bias":
            value = value + norm.bias - norm.running_mean * factor
        onnx_codes.put(result, found, value.numpy(), factor.numpy())


def _check(model: ModelProto) -> None:
    run_time = [node.op_type for node in model.graph.node if node.op_type in onnx_gate.QUANTIZED]
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    if halves or set(run_time) - set(onnx_rounding.KINDS):
        raise RecipeError(
            f"{KEY} trains int8 files with calibrated activations and files with packed weights; "
            "received one in 16-bit floats or with ranges found at run time."
        )


def _lost(stored: Stored, parts: list[Stored]) -> bool:
    return stored.part == "weight" and stored not in parts


def _free(network: nn.Module, stored: list[Stored], before: nn.Module | None) -> list[Stored]:
    """Let only what the file can take back be trained, each on its grid. Returns that.

    `before` is the network before its export: what it has no weight for is a rewritten operator and stays, and so do
    the zeros of its pruned layers.
    """
    network.requires_grad_(False)
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.register_forward_pre_hook(lambda norm, _: norm.train(False) and None)
    modules = dict(network.named_modules())
    known = None if before is None else {name for name, _ in before.named_parameters()}
    own = [s for s in stored if isinstance(modules.get(s.layer), KINDS)]
    own = [s for s in own if known is None or f"{s.layer}.weight" in known]
    for found in own:
        layer = modules[found.layer]
        getattr(layer, found.part).requires_grad_(True)
        alive = surviving(before.get_parameter(f"{found.layer}.weight")) if before and found.part == "weight" else None
        if alive is not None:
            parametrize.register_parametrization(layer, found.part, _Alive(alive))
        if found.grid is not None:
            scale = torch.from_numpy(np.array(found.grid.scale.T if found.transposed else found.grid.scale))
            parametrize.register_parametrization(layer, found.part, _OnGrid(scale, found.grid.low, found.grid.high))
    return own


class _Alive(nn.Module):
    """Zeros stay zero."""

    alive: Tensor

    def __init__(self, alive: Tensor) -> None:
        super().__init__()
        self.register_buffer("alive", alive)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.alive


class _OnGrid(nn.Module):
    """The nearest number on the grid; gradients pass, but not beyond its ends."""

    scale: Tensor

    def __init__(self, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.low, self.high = low, high

    def forward(self, weight: Tensor) -> Tensor:
        within = (weight / self.scale).clamp(self.low, self.high)
        return (within + (within.round() - within).detach()) * self.scale


class _Exact(nn.Module):
    """In float32 whatever surrounds it: fewer digits would round other values than the file does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            answer: Tensor = self.network(x)
            return answer
