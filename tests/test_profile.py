"""Counts against fvcore and sums by hand; the measured part against the runtime's own names."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper, save
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import file_facts
from core.engine.models import Model, open_model
from core.engine.node_latency import layer_aliases, measure_nodes
from core.engine.profile import count_macs, profile
from core.engine.surgery import calls
from core.errors import ModelError
from core.layers import Profile
from sample_models.cifar_resnet import CifarResNet
from tests.nets import Net
from tests.shared_data import shared

CARD = ModelCard("net", "Net", (3, 8, 8), tuple("abcde"))


class Extra(nn.Module):
    """A depthwise and a transposed convolution, PReLU, a parameter of its own, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.PReLU(4)
        self.depthwise, self.up = nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.ConvTranspose2d(4, 6, 2, 2)
        self.answer, self.unused = nn.Linear(6, 5), nn.Linear(2, 3)
        self.gain = nn.Parameter(torch.ones(1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depthwise(self.act(self.norm(self.a(x)))))
        return self.answer(x.mean((2, 3)) * self.gain)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Profile, Path]:
    net = Net(["residual", "preact", "depthwise"], [4, 3, 5, 2], "flatten")
    file = tmp_path_factory.mktemp("profile") / "net.onnx"
    onnx_writer.export(net, CARD, file)
    return net, profile(Model(net, CARD), file), file


def test_totals_are_the_sums_and_nothing_is_left_out(profiled: tuple[nn.Module, Profile, Path]):
    _, found, file = profiled
    assert found.params == file_facts(file, CARD.input_shape).params == sum(x.params for x in found.layers)
    assert found.layer("blocks.0.norm").params == 0  # its convolution has a bias that takes it in
    assert found.layer("blocks.1.norm").params == 2 * found.layer("blocks.1.norm").out_channels  # the file keeps it
    assert found.macs == sum(x.macs for x in found.layers)
    assert found.activation_bytes == sum(x.activation_bytes for x in found.layers)
    assert found.file_bytes == file.stat().st_size
    stem = found.layer("stem")
    assert (stem.kind, stem.params, stem.macs) == ("conv", 3 * 4 * 9 + 4, 3 * 4 * 9 * 64)
    assert (stem.output_shape, stem.activation_bytes, stem.input_shape) == ((4, 8, 8), 4 * 4 * 64, (3, 8, 8))


def test_parameters_are_those_of_the_file_with_and_without_a_bias_that_takes_the_norm_in(tmp_path: Path):
    for blocks in (["plain", "project"], ["plain", "residual", "depthwise"], ["concat", "preact"]):
        net, file = Net(blocks, [5, 6, 4, 7][: len(blocks) + 1], "mean"), tmp_path / "net.onnx"
        onnx_writer.export(net, CARD, file)
        assert profile(Model(net, CARD), file).params == file_facts(file, CARD.input_shape).params, blocks


def test_parameters_of_an_uploaded_file_are_those_of_what_is_made_of_it(tmp_path: Path):
    """Its norm is folded in every export, whatever the file calls it."""
    weights = {"w": (6, 3, 3, 3), "g": (6,), "b": (6,), "m": (6,), "v": (6,), "w2": (4, 6)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv_0", kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"], "batchnormalization_0"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flat"),
        helper.make_node("Gemm", ["e", "w2"], ["y"], "answer", transB=1),
    ]
    file = _file(tmp_path / "any.onnx", nodes, (3, 8, 8), weights)
    model = open_model({"kind": "file", "path": str(file), "classes": list("abcd")})
    onnx_writer.export(model.module, model.card, tmp_path / "export.onnx")
    exported = file_facts(tmp_path / "export.onnx", model.card.input_shape).params
    assert profile(model, file).params == exported == 6 * 27 + 6 + 24


def test_every_layer_is_timed_and_norms_are_folded_away(profiled: tuple[nn.Module, Profile, Path]):
    _, found, _ = profiled
    assert found.latency_ms is not None
    times = [x.latency_ms for x in found.tunable]
    assert all(t is not None and 0 < t < 50 for t in times)
    assert sum(t or 0 for t in times) < 5 * found.latency_ms
    assert found.layer("blocks.0.norm").latency_ms is None


def test_inputs_account_for_every_channel(profiled: tuple[nn.Module, Profile, Path]):
    _, found, _ = profiled
    width = {group.name: group.channels for group in found.groups}
    for layer in found.layers:
        assert sum(width[feed.group] * feed.repeat for feed in layer.inputs) == layer.in_channels, layer.name
        assert layer.group == "" or width[layer.group] == layer.out_channels
    assert found.layer("blocks.1.norm").group == ""  # over the concat of two groups


def test_a_profile_survives_json(profiled: tuple[nn.Module, Profile, Path]):
    _, found, _ = profiled
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_kinds_and_macs_by_hand(tmp_path: Path):
    net = Extra()
    rows = {row.path: row for row in calls(net, torch.zeros(1, 3, 8, 8))}
    assert {name: count_macs(row) for name, row in rows.items()} == {
        "a": 3 * 4 * 9 * 16, "norm": 0, "act": 0, "depthwise": 4 * 9 * 16, "up": 4 * 6 * 4 * 16, "answer": 30,
    }  # fmt: skip
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["w"], "pool")]
    found = profile(Model(net, CARD), _file(tmp_path / "any.onnx", nodes, (3, 8, 8), {}))  # counted on the module
    assert {x.name: x.kind for x in found.layers} == {
        "a": "conv", "norm": "norm", "act": "other", "depthwise": "depthwise", "up": "conv_transpose",
        "answer": "linear", "(model)": "other", "unused": "other",
    }  # fmt: skip
    assert (found.layer("(model)").params, found.layer("unused").params) == (1, 9)
    assert found.params == sum(p.numel() for p in net.parameters()) - 8  # the norm is in the bias of `a`


def test_resnet20_against_the_paper_the_hand_and_fvcore():
    net, image = CifarResNet(20).eval(), torch.zeros(1, 3, 32, 32)
    macs = sum(count_macs(row) for row in calls(net, image))
    plain = 442_368 + 6 * 2_359_296 + 2 * (1_179_648 + 5 * 2_359_296) + 640  # stem, three stages, classifier
    shortcuts = 16 * 32 * 16**2 + 32 * 64 * 8**2  # the two 1×1 convolutions of option B
    assert plain == 40_551_040
    assert macs == plain + shortcuts == 40_813_184
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces, which torch has deprecated
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        by_operator = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).by_operator()
    assert macs == by_operator["conv"] + by_operator["linear"]
    assert sum(p.numel() for p in net.parameters()) == 272_474


def _file(path: Path, nodes: list, shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]) -> Path:
    stored = [
        helper.make_tensor(n, TensorProto.FLOAT, s, [0.1] * int(torch.Size(s).numel())) for n, s in weights.items()
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_fused_nodes_are_found_under_the_name_of_what_they_absorbed(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["y"], "whatever", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["y"], ["z"], "act"),
        helper.make_node("Conv", ["z", "second.weight"], ["u"], "other", kernel_shape=[1, 1]),
        helper.make_node("Add", ["u", "z"], ["v"], "sum"),
        helper.make_node("GlobalAveragePool", ["v"], ["w"], "pool"),
    ]
    file = _file(tmp_path / "m.onnx", nodes, (8, 4, 4), {"first.weight": (8, 8, 1, 1), "second.weight": (8, 8, 1, 1)})
    graph = helper.make_graph(nodes, "g", [], [])
    assert layer_aliases(graph) == {
        "whatever": "first", "y": "first", "act": "first", "z": "first",
        "other": "second", "u": "second", "sum": "second", "v": "second",
    }  # fmt: skip
    assert set(measure_nodes(file, (8, 4, 4)).layers) == {"first", "second"}


def test_peak_memory_by_hand(tmp_path: Path):
    """x (2×4×4 floats = 128 B) → conv to 6 channels (384 B) → relu in place → pool (24 B): the peak is 128 + 384."""
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["y"], "a", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
        helper.make_node("GlobalAveragePool", ["z"], ["w"], "pool"),
    ]
    file = _file(tmp_path / "m.onnx", nodes, (2, 4, 4), {"a.weight": (6, 2, 1, 1)})
    net = nn.Sequential()
    net.add_module("a", nn.Conv2d(2, 6, 1, bias=False))
    found = profile(Model(net.eval(), ModelCard("m", "M", (2, 4, 4), ("a",))), file)
    assert found.peak_bytes == 128 + 384


def test_a_broken_file_is_one_sentence(tmp_path: Path):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not onnx")
    with pytest.raises(ModelError, match=r"broken\.onnx cannot be run by ONNX Runtime"):
        measure_nodes(file, (3, 8, 8))


def test_an_uploaded_file_keeps_its_layers_and_their_times():
    from core.engine.models import open_model

    file = shared("checkpoints/resnet20_cifar10.onnx")
    model = open_model({"kind": "file", "path": str(file)})
    found = profile(model, file)
    assert found.macs == 40_551_040
    assert all(layer.latency_ms for layer in found.tunable)
    assert len(found.tunable) == 20
