"""Looking at a network's layers in order of execution, and changing them in place: cut channels, replace a layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Call:
    """One layer that holds parameters, as it was run. Shapes are without the batch axis."""

    path: str
    layer: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    times: int  # how often one forward pass runs it


def kind_of(layer: nn.Module) -> str:
    """conv, depthwise, conv_transpose, linear, shortcut, norm or other, as in core/layers.py."""
    if getattr(layer, "is_shortcut", False):
        return "shortcut"
    if isinstance(layer, nn.Conv2d):
        return "depthwise" if 1 < layer.groups == layer.in_channels == layer.out_channels else "conv"
    if isinstance(layer, nn.ConvTranspose2d):
        return "conv_transpose"
    if isinstance(layer, nn.Linear):
        return "linear"
    return "norm" if isinstance(layer, NORMS) else "other"


def shortcuts(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Path → layer of every shortcut that had no parameters in the original (`shortcut.py`)."""
    return {path: part for path, part in module.named_modules() if getattr(part, "is_shortcut", False)}  # type: ignore[misc]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside, every part's own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes.items():
            part.training = training


@torch.no_grad()
def watch(module: nn.Module, parts: Mapping[str, nn.Module], x: Tensor, hook: Callable[..., None]) -> None:
    """Run `module` on x (n, c, h, w); `hook(name, layer, input, output)` at every part that it reaches."""
    handles = [
        part.register_forward_hook(lambda layer, inputs, output, name=name: hook(name, layer, inputs[0], output))
        for name, part in parts.items()
    ]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()


def calls(module: nn.Module, example: Tensor) -> tuple[Call, ...]:
    """Every layer (a leaf that holds parameters, or a norm) that `example` (n, c, h, w) reaches, in order."""
    found: dict[nn.Module, Call] = {}
    paths = {part: path for path, part in module.named_modules()}

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            times = found[part].times if part in found else 0
            found[part] = Call(paths[part], part, tuple(inputs[0].shape[1:]), tuple(output.shape[1:]), times + 1)

    watched = [p for p in paths if kind_of(p) != "other" or (p._parameters and not p._modules)]
    hooks = [part.register_forward_hook(note) for part in watched]
    try:
        with evaluating(module), torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found.values())


def copy_model(module: nn.Module) -> nn.Module:
    """A copy that shares no tensor with `module`; gradients are left behind. Works for fx.GraphModule too."""
    twin = copy.deepcopy(module)
    twin.zero_grad(set_to_none=True)
    return twin


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Put `layer` where `path` is. Raises AttributeError when there is no such path."""
    parent, _, name = path.rpartition(".")
    module.get_submodule(path)
    setattr(module.get_submodule(parent), name, layer)


def remove_channels(dependency: Any, layer: nn.Module, indices: Iterable[int]) -> None:
    """Cut output channels `indices` of `layer`, and everything coupled to them, in place.

    `dependency` is the torch-pruning graph of the whole network (`graph.trace`); it stays valid for further cuts.
    Raises ValueError when a coupled layer would be left without channels.
    """
    cut = sorted(set(indices))
    if not cut:
        return
    with torch.enable_grad():
        group = dependency.get_pruning_group(layer, dependency.get_pruner_of_module(layer).prune_out_channels, cut)
        if not dependency.check_pruning_group(group):
            raise ValueError(f"cutting {len(cut)} channels would leave a coupled layer empty")
        group.prune(record_history=False)
