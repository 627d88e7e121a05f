"""Shortcuts without parameters: a slice and a pad in files, free of cost until channels around them are removed."""

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
from core.engine.formats.onnx_reader import read_onnx
from core.engine.graph import trace
from core.engine.profile import count_macs
from core.engine.shortcut import make_shortcut, sliced
from core.engine.surgery import calls, kind_of, shortcuts
from core.engine.techniques import distill, factorize, prune_channels, prune_weights
from core.options import Distill, Factorize, PruneChannels, PruneWeights

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


def test_uncut_it_costs_nothing_and_is_a_slice_and_a_pad_in_the_file(tmp_path: Path) -> None:
    net = Net().eval()
    row = next(row for row in calls(net, torch.zeros(1, 3, 8, 8)) if row.path == "shortcut")
    assert (kind_of(row.layer), count_macs(row), list(row.layer.parameters())) == ("shortcut", 0, [])
    onnx_writer.export(net, CARD, tmp_path / "net.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert (kinds.count("Conv"), kinds.count("Pad"), kinds.count("Slice")) == (3, 1, 2)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert onnx_writer.verify(net, tmp_path / "net.onnx", x) < 1e-5
    assert isinstance(net.shortcut, nn.Conv2d), "exporting leaves the network as it was"


def test_its_slices_give_what_its_weight_gives() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        whole = net(x)
        with sliced(net):
            assert torch.equal(net(x), whole)


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
