"""Shortcuts without parameters: a slice and a pad in files of others, a convolution that copies in ours, free of cost
until channels around them are removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import file_facts
from core.engine.formats.onnx_reader import read_onnx
from core.engine.graph import trace
from core.engine.profile import count_macs
from core.engine.shortcut import empty_around, make_shortcut
from core.engine.surgery import calls, kind_of, shortcuts
from core.engine.techniques import distill, factorize, prune_channels, prune_weights, quantize
from core.options import Distill, Factorize, PruneChannels, PruneWeights, Quantize

CARD = ModelCard("tiny", "Tiny", (3, 8, 8), ("dark", "bright"), mean=(0.5,) * 3, std=(0.25,) * 3)


class Net(nn.Module):
    """A stage of 8 channels, one of 16, and the shortcut between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 16, 3, 2, 1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = make_shortcut(8, 4, 4, (2, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(F.relu(self.inner(x))) + self.shortcut(x))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def context() -> Context:
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8), rng.integers(0, 2, 64))
    return Context(CARD, images, images, images, False, None)


def file_with(pads: list[int], slices: list[tuple[int, int]]) -> onnx.ModelProto:
    """An ONNX file of 1×1 convolution, slices (axis, step) and a pad, as exporters write the shortcut."""
    constants = {"w": np.ones((2, 3, 1, 1), np.float32), "pads": np.array(pads), "zero": np.zeros(1, np.int64)}
    constants |= {"end": np.array([2**63 - 1]), "b": np.zeros(2, np.float32)}
    nodes, at = [helper.make_node("Conv", ["input", "w", "b"], ["v0"])], "v0"
    for axis, step in slices:
        constants |= {f"axis{axis}": np.array([axis]), f"step{step}": np.array([step])}
        nodes.append(helper.make_node("Slice", [at, "zero", "end", f"axis{axis}", f"step{step}"], [f"{at}s"]))
        at = f"{at}s"
    nodes.append(helper.make_node("Pad", [at, "pads"], ["logits"]))
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *s])
        for n, s in (("input", [3, 8, 8]), ("logits", [None, None, None]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("pads", "slices", "found"),
    [
        ([0, 1, 0, 0, 0, 2, 0, 0], [(2, 2), (3, 2)], ((2, 2), 2, 5)),
        ([0, 1, 0, 0, 0, 0, 0, 0], [(3, 4)], ((1, 4), 2, 3)),
        ([0, 0, 0, 0, 0, 3, 0, 0], [], ((1, 1), 2, 5)),
        ([0, 1, 1, 0, 0, 2, 0, 0], [(2, 2)], None),  # it pads rows too
    ],
)
def test_slice_and_pad_become_one_layer(
    tmp_path: Path, pads: list[int], slices: list[tuple[int, int]], found: tuple[tuple[int, int], int, int] | None
) -> None:
    proto = file_with(pads, slices)
    onnx.save(proto, tmp_path / "net.onnx")
    net = read_onnx(tmp_path / "net.onnx")
    layers = [(layer.stride, layer.in_channels, layer.out_channels) for layer in shortcuts(net).values()]
    assert layers == ([] if found is None else [found])
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"input": x})[0]
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach(), expected, atol=1e-6)


def test_uncut_it_is_a_copy_that_counts_as_nothing_also_in_the_file(tmp_path: Path) -> None:
    net, file = Net().eval(), tmp_path / "net.onnx"
    row = next(row for row in calls(net, torch.zeros(1, 3, 8, 8)) if row.path == "shortcut")
    assert (kind_of(row.layer), count_macs(row), list(row.layer.parameters())) == ("shortcut", 0, [])
    onnx_writer.export(net, CARD, file)
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert (kinds.count("Conv"), kinds.count("Pad"), kinds.count("Slice")) == (4, 0, 0)
    facts = file_facts(file)
    assert facts.params == sum(p.numel() for p in net.parameters())
    assert facts.macs == sum(map(count_macs, calls(net, torch.zeros(1, 3, 8, 8))))
    assert set(facts.node_macs) == {"first", "inner", "second", "head"}
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert onnx_writer.verify(net, CARD, file, x) < 1e-5


def test_read_again_it_is_a_shortcut_again(tmp_path: Path) -> None:
    onnx_writer.export(Net().eval(), CARD, tmp_path / "net.onnx")
    net = read_onnx(tmp_path / "net.onnx")
    assert [(layer.stride, layer.in_channels, layer.out_channels) for layer in shortcuts(net).values()] == [
        ((2, 2), 8, 16)
    ]
    assert not any("shortcut" in name for name, _ in net.named_parameters())


def test_in_integers_it_follows_what_it_copies(tmp_path: Path) -> None:
    net, file = Net().eval(), tmp_path / "net.onnx"
    onnx_writer.export(net, CARD, file)
    source = onnx.load(file)
    result = quantize.apply(source, Quantize(images=8), {}, context()).model
    assert quantize.quantized_layers(result) == {"first", "inner", "second", "shortcut", "head"}
    onnx_writer.save(result, file)
    assert file_facts(file).params == sum(p.numel() for p in net.parameters())
    behind_float = quantize.apply(source, Quantize(images=8), {"first": 32}, context()).model
    assert quantize.quantized_layers(behind_float) == {"inner", "second", "head"}


@pytest.mark.parametrize(
    ("weight", "around"),
    [
        (np.pad(np.eye(3), ((1, 2), (0, 0))), (1, 2)),
        (np.eye(2) * (1 - 1e-7), (0, 0)),
        (np.pad(np.eye(3), ((0, 1), (0, 0)))[::-1], None),  # in another order
        (np.eye(2) * 0.99, None),
        (np.eye(3)[:2], None),  # it drops a channel
        (np.zeros((4, 2)), None),
        (np.eye(4)[:, 2:], (2, 0)),
        (np.eye(4)[:, 2:][:, ::-1], None),
        (np.eye(4)[:, [3]], None),
    ],
)
def test_only_a_copy_in_order_is_one(weight: np.ndarray, around: tuple[int, int] | None) -> None:
    assert empty_around(weight[:, :, None, None].astype(np.float32)) == around
    assert empty_around(np.tile(weight[:, :, None, None], (1, 1, 3, 3))) is None


def test_no_technique_that_leaves_the_widths_touches_it() -> None:
    for technique, options in (
        (prune_weights, PruneWeights(0.8)), (factorize, Factorize(0.3)), (distill, Distill(1, 0.2, teacher=False)),
        (prune_channels, PruneChannels(0.0)),
    ):  # fmt: skip
        net = Net().eval()
        weight = net.shortcut.weight.clone()
        technique.apply(net, options, {}, context())
        assert torch.equal(net.get_submodule("shortcut").weight, weight), technique.__name__
        assert not list(net.get_submodule("shortcut").parameters()), technique.__name__


@pytest.mark.parametrize("repair", [True, False])
def test_once_cut_it_is_an_ordinary_weight(repair: bool) -> None:
    net = Net().eval()
    structure = trace(net, torch.zeros(1, 3, 8, 8))
    assert [group.name for group in structure.open] == ["first", "inner", "second"], "named after what they make"
    prune_channels.apply(net, PruneChannels(0.25, multiple=1, repair=repair, reestimate=False), {}, context())
    weight = net.shortcut.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.shape == (12, 6, 1, 1)
    copies = set(weight.detach().unique().tolist()) <= {0.0, 1.0}
    assert copies != repair, "what remains is solved again, with every weight free"
    distill.apply(net, Distill(1, 0.2, teacher=False), {}, context())
    assert not set(net.get_submodule("shortcut").weight.detach().unique().tolist()) <= {0.0, 1.0}, "training moves it"
