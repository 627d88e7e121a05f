"""Exact clean-ups of a network that came in a file: what it computes twice or for nothing goes, its answers stay.

Convolutions of one input whose outputs are only summed become one convolution, an identity or a BatchNorm beside them
included (RepVGG: Making VGG-style ConvNets Great Again, Ding et al. 2021), and channels that nothing reads are removed.
Files from TensorFlow put channels last before a linear layer; it reads them first then, so that they can be pruned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from core.engine.counterparts import SUMS
from core.engine.graph import Structure, trace
from core.engine.surgery import copy_model, kind_of, remove_channels

CLOSE = 1e-4  # of the largest answer: float32 sums in another order
CHANNELS_LAST = (0, 2, 3, 1)
READERS = ("conv", "conv_transpose", "linear", "shortcut")  # kinds that turn channels into others

Modules = Mapping[str, nn.Module]


@torch.no_grad()
def clean(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, str]:
    """(the network without what it does not need, what was done as a sentence); `module` itself and "" where it is
    clean, or where its answers would move. `input_shape` is (c, h, w)."""
    if not isinstance(module, fx.GraphModule):
        return module, ""
    twin = copy_model(module.eval())
    assert isinstance(twin, fx.GraphModule)
    zeros = torch.zeros(1, *input_shape)
    turned, merged, dead = read_channels_first(twin, zeros), merge_parallel(twin), remove_dead(twin, zeros)
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    before, after = module(x), twin(x)
    if not (merged or dead or turned) or float((before - after).abs().max()) > CLOSE * float(before.abs().max()):
        return module, ""
    said = {
        "merged {} parallel branches": merged,
        "removed {} channels that nothing reads": dead,
        "removed the transposition before {} of its linear layers": turned,
    }
    done = " and ".join(text.format(count) for text, count in said.items() if count)
    return twin, f"On opening, the studio {done}; its answers are the same."


def merge_parallel(module: fx.GraphModule) -> int:
    """Put one convolution in the place of each sum of two that read the same; how many sums went."""
    count = 0
    for total in list(module.graph.nodes):
        pair = total.all_input_nodes
        modules = dict(module.named_modules())
        if total.target in SUMS and not total.kwargs and len(pair) == 2 and _merge(total, pair, modules, module):
            count += 1
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return count


def _merge(total: fx.Node, pair: list[fx.Node], modules: Modules, module: fx.GraphModule) -> bool:
    convolutions = [node for node in pair if _is(node, nn.Conv2d, modules) and len(node.users) == 1]
    lead = max(convolutions, key=lambda node: weight_of(modules[str(node.target)]).numel(), default=None)
    if lead is None:
        return False
    conv, source = modules[str(lead.target)], lead.args[0]
    other = next(node for node in pair if node is not lead)
    assert isinstance(conv, nn.Conv2d)
    added = _as_convolution(other, source, conv, modules)
    if added is None:
        return False
    weight, bias = added
    conv.weight += weight
    conv.bias = nn.Parameter(bias if conv.bias is None else conv.bias + bias)
    total.replace_all_uses_with(lead)
    module.graph.erase_node(total)
    if not other.users:
        module.graph.erase_node(other)
    return True


def _as_convolution(node: fx.Node, source: object, like: nn.Conv2d, modules: Modules) -> tuple[Tensor, Tensor] | None:
    """(weight, bias) with which a convolution shaped `like` gives what `node` makes of `source`; None if none does."""
    if node is source:
        return _diagonal(like, torch.ones(like.out_channels), torch.zeros(like.out_channels))
    if len(node.users) != 1 or node.op != "call_module" or node.args[0] is not source:
        return None
    part = modules[str(node.target)]
    if isinstance(part, nn.BatchNorm2d) and part.running_var is not None and part.running_mean is not None:
        scale = (part.running_var + part.eps).rsqrt() * (1.0 if part.weight is None else part.weight)
        shift = (0.0 if part.bias is None else part.bias) - part.running_mean * scale
        return _diagonal(like, scale, shift)
    if not isinstance(part, nn.Conv2d) or not _fits(part, like):
        return None
    margins = [(a - b) // 2 for a, b in zip(like.kernel_size, part.kernel_size, strict=True)]
    weight = F.pad(part.weight, (margins[1], margins[1], margins[0], margins[0]))
    return weight, torch.zeros(like.out_channels) if part.bias is None else part.bias


def _diagonal(like: nn.Conv2d, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor] | None:
    """What multiplies each channel, as a kernel with one tap in its middle."""
    centred = all(k % 2 == 1 and p == k // 2 for k, p in zip(like.kernel_size, _padding(like), strict=True))
    if like.in_channels != like.out_channels or set(like.stride) != {1} or not centred:
        return None
    weight, channel = torch.zeros_like(like.weight), torch.arange(like.out_channels)
    weight[channel, channel % weight.shape[1], like.kernel_size[0] // 2, like.kernel_size[1] // 2] = scale
    return weight, shift


def _fits(part: nn.Conv2d, like: nn.Conv2d) -> bool:
    """Whether the smaller kernel's taps all lie on the larger one's."""
    same = all(getattr(part, key) == getattr(like, key) for key in ("stride", "groups", "out_channels", "padding_mode"))
    sides = zip(like.kernel_size, part.kernel_size, _padding(like), _padding(part), strict=True)
    plain = part.padding_mode == "zeros" and set(part.dilation) | set(like.dilation) == {1}
    return same and plain and all(k >= s and k - s == 2 * (p - q) for k, s, p, q in sides)


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    return (-1, -1) if isinstance(layer.padding, str) else tuple(layer.padding)


def _is(node: fx.Node, kind: type[nn.Module], modules: Modules) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kind)


def read_channels_first(module: fx.GraphModule, example: Tensor) -> int:
    """Drop each transposition to channels last whose result is only flattened for a linear layer, and reorder what
    that layer reads; how many went."""
    turns = [node for node in module.graph.nodes if _turns(node)]
    if turns:
        ShapeProp(module).propagate(example)  # type: ignore[no-untyped-call]
    count, modules = 0, dict(module.named_modules())
    for turn in turns:
        flat = next(iter(turn.users))
        linear = _only_user(flat)
        if (
            flat.target is not torch.flatten
            or flat.args[1] != 1
            or linear is None
            or not _is(linear, nn.Linear, modules)
        ):
            continue
        source, layer = turn.all_input_nodes[0], modules[str(linear.target)]
        _, c, h, w = source.meta["tensor_meta"].shape
        assert isinstance(layer, nn.Linear)
        if layer.in_features != c * h * w:  # not all of it was flattened
            continue
        layer.weight.copy_(layer.weight.view(-1, h, w, c).permute(0, 3, 1, 2).flatten(1).clone())
        flat.replace_input_with(turn, source)
        module.graph.erase_node(turn)
        count += 1
    module.recompile()
    return count


def _turns(node: fx.Node) -> bool:
    """Whether a node puts channels last, for one reader."""
    if node.target not in ("permute", torch.permute) or len(node.args) < 2:
        return False
    order = node.args[1] if len(node.args) == 2 else node.args[1:]
    return order in (CHANNELS_LAST, list(CHANNELS_LAST)) and _only_user(node) is not None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def remove_dead(module: nn.Module, example: Tensor) -> int:
    """Remove every channel that each layer behind it multiplies by zero; how many went."""
    layers = [part for part in module.modules() if kind_of(part) in READERS]
    if not any(read_nothing(layer).any() for layer in layers):  # tracing takes a while
        return 0
    structure, count = trace(module, example), 0
    for group in structure.open:
        unread = _unread(module, structure, group.name, group.channels)
        dead = unread.nonzero().flatten().tolist()[: group.channels - 1]  # one has to stay
        remove_channels(structure.dependency, module.get_submodule(group.name), dead)
        count += len(dead)
    return count


def _unread(module: nn.Module, structure: Structure, group: str, channels: int) -> Tensor:
    """(channels,): whether every consumer's weights for a channel of the group are zero; never where there is none."""
    found = []
    for path, feeds in structure.inputs.items():
        layer, start = module.get_submodule(path), 0
        if kind_of(layer) not in READERS:
            continue
        zero = read_nothing(layer)
        for feed in feeds:
            width = feed.repeat * _width(structure, feed.group)
            if feed.group == group:
                found.append(zero[start : start + width].view(channels, feed.repeat).all(1))
            start += width
    return torch.stack(found).all(0) if found else torch.zeros(channels, dtype=torch.bool)


def read_nothing(layer: nn.Module) -> Tensor:
    """(c_in / groups,): the inputs that a layer multiplies by zero."""
    weight = weight_of(layer)
    return (weight if kind_of(layer) == "conv_transpose" else weight.transpose(0, 1)).flatten(1).eq(0).all(1)


def weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _width(structure: Structure, group: str) -> int:
    return next(g.channels for g in structure.groups if g.name == group)
