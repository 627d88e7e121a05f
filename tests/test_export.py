"""Export: names, bytes, metadata, and that a wrong file does not pass for the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import runtime
from core.engine.formats import onnx_writer
from core.errors import ModelError
from tests.tiny import CARD, tiny_model

X = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    onnx_writer.export(tiny_model().module, CARD, path, about={"recipe": "abc"})
    return path


def names_of(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node]


def test_every_layer_has_the_node_of_its_name_and_no_name_comes_twice(file: Path) -> None:
    kinds = {node.name: node.op_type for node in onnx.load(file).graph.node}
    assert len(kinds) == len(onnx.load(file).graph.node)
    layers = {"stem": "Conv", "block.0": "Conv", "block.2": "Conv", "down": "Conv", "head": "Gemm"}
    assert {name: kinds[name] for name in layers} == layers
    assert kinds["block.1"] == "Relu"
    assert {"relu", "add", "pool"} < set(kinds)


def test_any_batch_size_gives_the_same_answers(file: Path) -> None:
    session = runtime.open_file(file)
    whole = runtime.run(session, X)
    assert whole.shape == (5, 4)
    np.testing.assert_allclose(np.concatenate([runtime.run(session, X[:1]), runtime.run(session, X[1:])]), whole, 1e-5)
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["logits"]


def test_the_same_network_gives_the_same_bytes_without_paths_or_traces(file: Path, tmp_path: Path) -> None:
    onnx_writer.export(tiny_model().module, CARD, tmp_path / "again.onnx", about={"recipe": "abc"})
    content = file.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert b"stack_trace" not in content
    assert str(Path(__file__).parents[1]).encode() not in content
    assert not list(tmp_path.glob("*.part"))


def test_the_file_says_how_to_feed_it(file: Path) -> None:
    proto = onnx.load(file)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(facts["mean"]) == [0.5, 0.5, 0.5]
    assert json.loads(facts["classes"]) == ["up", "down", "left", "right"]
    assert facts["recipe"] == "abc"
    assert proto.producer_name == "cnn-studio"


def test_export_is_silent_and_leaves_the_network_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = tiny_model().module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    onnx_writer.export(module, CARD, tmp_path / "x.onnx")
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_verify_accepts_the_file_and_refuses_a_changed_weight(file: Path, tmp_path: Path) -> None:
    module = tiny_model().module
    assert onnx_writer.verify(module, CARD, file, X) < 1e-4
    with torch.no_grad():
        module.head.weight[0, 0] += 1.0  # type: ignore[index]
    with pytest.raises(ModelError, match="differs from the network by"):
        onnx_writer.verify(module, CARD, file, X)


def test_verify_refuses_another_shape_and_numbers_that_are_not_finite(file: Path) -> None:
    module = tiny_model().module
    with pytest.raises(ModelError, match=r"shape \(5, 4\); the network's is \(5, 3\)"):
        onnx_writer.verify(nn.Sequential(module, nn.Linear(4, 3)).eval(), CARD, file, X)
    with torch.no_grad():
        module.head.bias[0] = float("nan")  # type: ignore[index]
    with pytest.raises(ModelError, match="not finite"):
        onnx_writer.verify(module, CARD, file, X)


class Odd(nn.Module):
    """A layer used twice, a linear layer without bias, and two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.flat = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(torch.relu(self.conv(x)))
        return self.flat(x.mean((2, 3))), x


def test_layers_without_a_name_of_their_own_in_the_file_still_get_one(tmp_path: Path) -> None:
    card = ModelCard("odd", "Odd", (3, 6, 6), ("a", "b"))
    onnx_writer.export(Odd().eval(), card, tmp_path / "odd.onnx")
    kinds = {node.name: node.op_type for node in onnx.load(tmp_path / "odd.onnx").graph.node}
    assert kinds["conv"] == kinds["conv_1"] == "Conv"
    assert kinds["flat"] in ("MatMul", "Gemm")
    outputs = [o.name for o in runtime.open_file(tmp_path / "odd.onnx").get_outputs()]
    assert outputs == ["output_0", "output_1"]


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    class Dated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0] if x.sum().item() > 0 else x[:, 1]

    with pytest.raises(ModelError, match="cannot be exported to ONNX"):
        onnx_writer.export(Dated().eval(), CARD, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def uploaded(path: Path, batch: str | int) -> Path:
    """As the old exporter writes it: numbered weights, paths in the nodes' names."""
    weights = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_7"], ["c"], name="/layer1/layer1.0/conv1/Conv"),
        helper.make_node("Relu", ["c"], ["y"], name="/layer1/layer1.0/Relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2, 4, 4])],
        [numpy_helper.from_array(weights, "onnx::Conv_7")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_uploaded_file_keeps_its_weights_and_gets_its_layers_names(tmp_path: Path) -> None:
    source, copy = uploaded(tmp_path / "up.onnx", "n"), tmp_path / "copy.onnx"
    assert onnx_writer.free_batch(source, copy)
    assert names_of(copy) == ["layer1.0.conv1", "layer1.0.relu"]
    x = np.ones((2, 3, 6, 6), np.float32)
    before, after = (runtime.run(runtime.open_file(path), x) for path in (source, copy))
    np.testing.assert_array_equal(before, after)


def test_a_file_with_a_fixed_batch_size_is_not_the_original(tmp_path: Path) -> None:
    assert not onnx_writer.free_batch(uploaded(tmp_path / "up.onnx", 4), tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx").exists()


def test_a_fixed_batch_size_is_run_as_often_as_it_takes(tmp_path: Path) -> None:
    free, fixed = uploaded(tmp_path / "free.onnx", "n"), uploaded(tmp_path / "fixed.onnx", 4)
    x = np.random.default_rng(1).standard_normal((7, 3, 6, 6)).astype(np.float32)
    expected = runtime.run(runtime.open_file(free), x)
    np.testing.assert_allclose(runtime.run(runtime.open_file(fixed), x), expected, rtol=1e-5)


def test_a_broken_file_is_one_sentence(tmp_path: Path, file: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"half.onnx cannot be run by ONNX Runtime: .*\.$"):
        runtime.open_file(tmp_path / "half.onnx")
