"""Nets with hard-swish, squeeze-excite and depthwise layers: integers where they help, and hard activations by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import evaluate, fastest, runtime
from core.engine.context import Context, silent
from core.engine.data import Images, to_input
from core.engine.formats import onnx_hard, onnx_writer
from core.engine.techniques import quantize
from core.layers import Group, Layer, Profile
from core.options import Quantize
from core.predict import costs
from core.recipe import Recipe, Step

CARD = ModelCard("net", "net", (3, 16, 16), ("a", "b", "c"), mean=(0.5,), std=(0.25,))


def images(count: int, seed: int) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8), None)


CONTEXT = Context(CARD, images(1, 0), images(64, 1), images(1, 0), False, None)
X = to_input(images(50, 2).x, CARD)


class Net(nn.Module):
    """A block of MobileNetV3. (n, 3, 16, 16) → (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(3 * self.stem(x))
        x = nn.functional.hardswish(6 * self.depth(x))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        x = nn.functional.hardswish(self.project(x * nn.functional.hardsigmoid(5 * gate)))
        return self.head(x.mean((2, 3), keepdim=True).flatten(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx_writer.export(Net().eval(), CARD, path)
    return onnx.load(path)


def answers(model: ModelProto) -> NDArray[np.float32]:
    return runtime.run(runtime.open_file(model.SerializeToString()), X)


def int8(model: ModelProto, monkeypatch: pytest.MonkeyPatch, first: int, **options: str) -> quantize.Outcome:
    """With so many first layers left in float as if that had been measured to be fastest."""
    monkeypatch.setattr(quantize, "first_integer_layer", lambda *_: first)
    return quantize.apply(model, Quantize(**options), {}, CONTEXT)  # type: ignore[arg-type]


def optimized(model: ModelProto, path: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("highest", "zero"), [(3.0, 128), (9.0, 64), (0.001, 254)])
def test_the_lowest_input_that_matters_is_code_zero(highest: float, zero: int) -> None:
    """Between -3 and `highest` lie 255 steps; 0 is at 3 / (3 + highest) of them."""
    node = onnx.helper.make_node("HardSwish", ["x"], ["y"], "swish")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    (point,) = onnx_hard.find_points(model, {"x": highest}, ())["x"]
    assert int(point["zero_point"]) == zero
    assert float(point["scale"]) * zero == pytest.approx(3)


def test_hard_activations_stay_integers_and_answers_hold(
    exported: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = int8(exported, monkeypatch, 0).model
    onnx.checker.check_model(model, full_check=True)
    kinds = optimized(model, tmp_path / "o.onnx")
    assert not set(kinds) & {"HardSigmoid", "HardSwish", "Mul", "Conv", "FusedConv"}
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 0)  # the input; answers come as floats
    expected, found = answers(exported), answers(model)
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected - expected.mean(0)).mean()


def test_an_input_that_others_read_too_keeps_its_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = 9 * self.stem(x)
            return self.head((nn.functional.hardswish(x) + x).mean((2, 3)))

    torch.manual_seed(0)
    onnx_writer.export(Both().eval(), CARD, tmp_path / "both.onnx")
    plain = onnx.load(tmp_path / "both.onnx")
    model = int8(plain, monkeypatch, 0).model
    assert [n.op_type for n in model.graph.node].count("HardSwish") == 1
    expected, found = answers(plain), answers(model)
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected - expected.mean(0)).mean()


def test_layers_that_are_faster_in_float_are_named_and_stored_in_bytes(
    exported: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcome = int8(exported, monkeypatch, 2)
    assert [(s.layer, s.reason) for s in outcome.skipped] == [(n, quantize.SLOWER) for n in ("stem", "depth")]
    assert quantize.quantized_layers(outcome.model) == {"squeeze", "excite", "project", "head"}
    stored = {t.name: t for t in outcome.model.graph.initializer}
    for name in ("stem", "depth"):
        assert stored[f"{name}.weight.codes"].data_type == onnx.TensorProto.INT8
        assert f"{name}.weight" not in stored
    kinds = optimized(outcome.model, tmp_path / "o.onnx")
    assert kinds["Cast"] == 0  # weights are made once
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 0)
    expected, found = answers(exported), answers(outcome.model)
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected - expected.mean(0)).mean()


def test_predicted_bytes_hold_wherever_a_layer_computes(exported: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("stem", "conv", 448, 0, 3, 16, (3, 3), 1, True, (16, 8, 8), 0, "stem", ())
    profile = Profile((layer,), (Group("stem", 16, ("stem",)),), 448, 0, 0, 0, 0)
    (cost,) = costs(profile, Recipe((Step("quantize"),))).layers
    for first in (0, 1):
        model = int8(exported, monkeypatch, first).model
        parts = [t for t in model.graph.initializer if t.name.startswith("stem.") and "zero" not in t.name]
        sizes = {t.name: np.asarray(onnx.numpy_helper.to_array(t)).nbytes for t in parts}
        weights = [size for name, size in sizes.items() if ".weight" in name and "bias" not in name]
        biases = [t for t in model.graph.initializer if "stem" in t.name and "bias" in t.name]
        bias = max(onnx.numpy_helper.to_array(t).nbytes for t in biases)
        assert cost.weight_bytes == sum(weights) + bias == 432 + 16 * 4 + 16 * 4


def test_nodes_all_is_never_timed(exported: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8(exported, monkeypatch, 2, nodes="all").skipped == ()


def test_only_nets_that_may_be_slower_in_integers_are_timed(exported: ModelProto) -> None:
    assert fastest.is_mixed(exported)
    plain = onnx.ModelProto()
    plain.CopyFrom(exported)
    kept = [n for n in plain.graph.node if n.op_type not in ("HardSwish", "HardSigmoid") and n.name != "depth"]
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    assert not fastest.is_mixed(plain)


def test_the_places_are_where_the_times_of_nodes_add_up_to_least() -> None:
    """Float layers take 1 each, the first three integer layers 3 and the others 0.2: leaving 3 takes 0.5 + 3 + 1.4."""
    in_float, in_integers = np.array([0.5] + [1.0] * 10), np.array([0.5] + [3.0] * 3 + [0.2] * 7)
    assert fastest.best_places(in_float, in_integers, [0.0] * 10) == [3, 5]
    # The image takes 0.5, so a map of 8 times its size before the fourth layer takes 4: after four it is better.
    assert fastest.best_places(in_float, in_integers, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0]) == [4, 2]
    assert fastest.best_places(in_float, in_float / 2, [1.0] * 10) == []


@pytest.mark.parametrize(
    ("times", "expected"),
    [((10, 9, 8), 5), ((10, 8, 9), 3), ((10, 9.8, 9.9), 0), ((10, 11, 12), 0)],
)
def test_whole_files_decide_between_the_places(
    times: tuple[float, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def write(count: int) -> ModelProto:
        made.append(count)
        return ModelProto()

    monkeypatch.setattr(fastest, "node_times", lambda *_: np.zeros(31))
    monkeypatch.setattr(fastest, "best_places", lambda *_: [3, 5])
    monkeypatch.setattr(fastest, "_size_before", lambda *_: 0.0)
    monkeypatch.setattr(fastest.runtime, "open_file", lambda content, threads: None)
    monkeypatch.setattr(fastest, "_time", lambda files, shape: list(times))
    layers = [str(n) for n in range(30)]
    assert fastest.first_integer_layer(ModelProto(), write, layers, (3, 8, 8), silent) == expected
    assert made == [0, 3, 5]


def test_times_of_nodes_belong_to_the_layer_before_them(exported: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the names that the runtime gives them; what it adds itself goes to the node before it."""
    head = exported.graph.node[-1]
    run = [("input_reorder", 1.0), ("stem_token_4_kernel_time", 2.0), ("Reorder_kernel_time", 4.0)]
    run += [("depth_nchwc_kernel_time", 8.0), (f"{head.output[0]}_kernel_time", 16.0)]
    monkeypatch.setattr(fastest, "profile_runs", lambda *_, **__: [run, [(name, 9 * time) for name, time in run]])
    layers = ("stem", "depth", "squeeze", "excite", "project", "head")
    monkeypatch.setattr(fastest, "_time", lambda *_: [31e-6])
    assert fastest.node_times(exported, layers, (3, 16, 16)) == pytest.approx([1, 6, 8, 0, 0, 0, 16])
    monkeypatch.setattr(fastest, "_time", lambda *_: [28.5e-6])  # 2.5 less for five nodes
    assert fastest.node_times(exported, layers, (3, 16, 16)) == pytest.approx([0.5, 5, 7.5, 0, 0, 0, 15.5])


def test_the_slowest_part_of_a_file_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 96, 5, padding=2), nn.Conv2d(96, 2, 1), nn.Flatten())
    onnx_writer.export(net.eval(), CARD, tmp_path / "net.onnx")
    found = fastest.node_times(onnx.load(tmp_path / "net.onnx"), ("0", "1", "2"), CARD.input_shape)
    assert int(found.argmax()) == 2


def test_the_slower_of_two_files_is_told(exported: ModelProto, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(*[nn.Conv2d(3, 64, 5, padding=2), nn.Conv2d(64, 64, 5, padding=2), nn.Flatten()])
    onnx_writer.export(wide.eval(), CARD, tmp_path / "wide.onnx")
    small = runtime.open_file(exported.SerializeToString(), 1)
    large = runtime.open_file(tmp_path / "wide.onnx", 1)
    first, second = fastest._time((large, small), CARD.input_shape)
    assert first > second


def test_errors_of_layers_are_those_of_their_own_output(
    exported: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where integers are read in a second way, or start at -3, the layer itself is still what is compared."""
    onnx_writer.save(exported, tmp_path / "a.onnx")
    onnx_writer.save(int8(exported, monkeypatch, 0).model, tmp_path / "b.onnx")
    errors = evaluate.layer_error(tmp_path / "a.onnx", tmp_path / "b.onnx", CONTEXT.calibration, CARD)
    assert set(errors) == {"stem", "depth", "squeeze", "excite", "project", "head"}
    assert all(0 < error < 0.1 for error in errors.values()), errors


def test_signed_activations_leave_hard_swish_in_float(exported: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    model = int8(exported, monkeypatch, 0, activations="int8").model
    assert [n.op_type for n in model.graph.node].count("HardSwish") == 3


def test_layers_at_32_bits_keep_their_hard_swish(exported: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "first_integer_layer", lambda *_: 0)
    model = quantize.apply(exported, Quantize(), {"stem": 32}, replace(CONTEXT)).model
    assert [n.op_type for n in model.graph.node].count("HardSwish") == 1
