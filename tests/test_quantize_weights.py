"""quantize_weights: rounding against brute force, packing by hand, and the file as ONNX Runtime runs it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine import runtime
from core.engine.context import Context
from core.engine.data import Images, to_input
from core.engine.formats.onnx_facts import file_facts
from core.engine.formats.onnx_packed import pack, unpack
from core.engine.formats.onnx_writer import export
from core.engine.rounding import find_scales, limits, round_weights
from core.engine.techniques.quantize_weights import apply
from core.errors import RecipeError
from core.layers import Feed, Group, Layer, Profile
from core.options import QuantizeWeights
from core.predict import costs
from core.recipe import Recipe, Step

CARD = ModelCard("net", "net", (3, 8, 8), ("a", "b", "c"), mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8), None)


CONTEXT = Context(CARD, images(1, 0), images(300, 1), images(1, 0), False, None)
X = to_input(images(50, 2).x, CARD)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.group = nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.up, self.head = nn.ConvTranspose2d(16, 9, 2, 2), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.norm(self.stem(x)).relu())
        x = x + self.group(x).relu()
        return self.head(self.up(x).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr, operator]
    path: Path = tmp_path_factory.mktemp("net") / "net.onnx"
    export(net, CARD, path)
    return onnx.load(path)


def answers(model: ModelProto) -> np.ndarray:
    return runtime.run(runtime.open_file(model.SerializeToString()), X)


def stored(model: ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def covariance(size: int, seed: int) -> Tensor:
    rows = torch.randn(50, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mixed = rows @ torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 99))
    return (mixed.T @ mixed / 50)[None]


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    codes, scales = round_weights(weight, torch.eye(5, dtype=torch.float64).repeat(2, 1, 1), 4)
    assert torch.equal(codes, (weight / scales).round().clamp(-8, 7))
    assert torch.equal(scales, find_scales(weight, torch.ones(2, 5, dtype=torch.float64), 4))


def test_rounding_with_feedback_is_near_the_best_of_all_codes() -> None:
    low, high = limits(2)
    for seed in range(12):
        a = covariance(4, seed)
        weight = torch.randn(1, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 7))
        codes, scales = round_weights(weight, a, 2)

        def error(found: Tensor, a: Tensor = a, weight: Tensor = weight, scales: Tensor = scales) -> float:
            gap = (found * scales - weight)[0, :, 0]
            return float(gap @ a[0] @ gap)

        every = [
            torch.tensor(c, dtype=torch.float64).view(1, 4, 1)
            for c in itertools.product(range(low, high + 1), repeat=4)
        ]
        nearest = (weight / scales).round().clamp(low, high)
        assert error(codes) <= error(nearest) + 1e-12
        assert error(codes) <= 1.6 * min(map(error, every)) + 1e-3


def test_inputs_that_hardly_vary_are_rounded_all_the_same() -> None:
    """Of sums in float32 rounding leaves what is no covariance at all."""
    noise = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for size in (0.0, 1e-8, 1.0):
        a = size * ((noise + noise.T).fill_diagonal_(1))[None]
        assert size == 0 or torch.linalg.eigvalsh(a).min() < 0
        weight = torch.randn(1, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        codes, scales = round_weights(weight, a, 8)
        assert (codes * scales - weight).abs().max() < 4 * scales.max()


def test_zeros_stay_zero() -> None:
    for seed in range(8):
        weight = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        weight[0, ::2] = 0
        alike = 0.05 * torch.eye(6, dtype=torch.float64) + 1  # inputs that could stand in for one another
        codes, _ = round_weights(weight, alike[None], 2)
        assert not codes[0, ::2].any()
        assert codes[0, 1::2].any()


def test_two_codes_share_a_byte_the_first_in_its_low_half() -> None:
    tensor = pack(np.array([[1, -2], [7, -8], [3, 0]])[:, :1], 4)
    assert tensor.raw_data == bytes([0x71, 0x03])
    assert numpy_helper.to_array(tensor).astype(int).ravel().tolist() == [1, 7, 3]
    assert numpy_helper.to_array(pack(np.array([-128, 127]), 8)).tolist() == [-128, 127]


def test_bit_planes_hold_one_bit_of_eight_codes_in_a_byte() -> None:
    """Codes 1, -4, 3 are 001, 100, 011 in two's complement; each plane starts at the highest place of its byte."""
    tensor = pack(np.array([1, -4, 3]), 3)
    assert list(tensor.dims) == [3, 1, 1]
    assert tensor.raw_data == bytes([0b10100000, 0b00100000, 0b01000000])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 1, 3)])
def test_the_runtime_makes_codes_times_scales_of_what_is_packed(bits: int, shape: tuple[int, ...]) -> None:
    low, high = limits(bits)
    rng = np.random.default_rng(bits)
    codes, scales = rng.integers(low, high + 1, shape), rng.random((shape[0], *[1] * (len(shape) - 1)))
    codes.flat[0], codes.flat[1] = low, high
    nodes, tensors = unpack("w", codes, scales.astype(np.float32), bits)
    made = onnx.helper.make_tensor_value_info("w.float", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "g", [], [made], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (found,) = runtime.open_file(model.SerializeToString()).run(None, {})
    np.testing.assert_allclose(found, codes * scales.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_opening_the_file_leaves_no_more_work_than_in_float(exported: ModelProto, bits: int, tmp_path: Path) -> None:
    """A model that unpacks its weights for every image ran at 0.4 times the speed."""
    kinds = []
    for number, model in enumerate((exported, apply(exported, QuantizeWeights(bits), {}, CONTEXT).model)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / f"{number}.onnx"), 3
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        kinds.append(sorted(n.op_type for n in onnx.load(tmp_path / f"{number}.onnx").graph.node))
    assert kinds[0] == kinds[1]


def test_parameters_and_macs_are_those_of_the_network(exported: ModelProto, tmp_path: Path) -> None:
    found = []
    for number, model in enumerate((exported, apply(exported, QuantizeWeights(5), {}, CONTEXT).model)):
        onnx.save(model, tmp_path / f"{number}.onnx")
        facts = file_facts(tmp_path / f"{number}.onnx", CARD.input_shape)
        found.append((facts.params, facts.macs, facts.peak_bytes))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("bits", "error", "share"), [(4, 0.25, 0.2), (5, 0.15, 0.23), (6, 0.07, 0.25), (8, 0.02, 0.32)]
)
def test_the_file_holds_integers_and_answers_nearly_the_same(
    exported: ModelProto, bits: int, error: float, share: float
) -> None:
    outcome = apply(exported, QuantizeWeights(bits), {}, CONTEXT)
    onnx.checker.check_model(outcome.model, full_check=True)
    expected, found = answers(exported), answers(outcome.model)
    spread = np.abs(expected - expected.mean(0)).mean()
    assert np.abs(found - expected).mean() < error * spread
    tensors = stored(outcome.model)
    kind = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}.get(bits, onnx.TensorProto.UINT8)
    before = {
        k: v for k, v in stored(exported).items() if k.endswith("weight") and k.split(".")[0] not in ("up", "norm")
    }
    codes = {k.split(".")[0]: v for k, v in tensors.items() if v.data_type == kind and k.endswith(".codes")}
    assert set(codes) == {k.split(".")[0] for k in before}
    packed = sum(len(v.raw_data) for v in codes.values())
    assert packed <= share * sum(len(v.raw_data) for v in before.values())
    assert [s.layer for s in outcome.skipped] == ["up"]
    assert {n.name for n in exported.graph.node} <= {n.name for n in outcome.model.graph.node}


def test_feedback_beats_rounding_to_nearest_on_other_images(exported: ModelProto) -> None:
    errors = []
    for calibration in (images(0, 0), CONTEXT.calibration):
        outcome = apply(exported, QuantizeWeights(4), {}, replace(CONTEXT, calibration=calibration))
        errors.append(np.abs(answers(outcome.model) - answers(exported)).mean())
    assert errors[1] < 0.5 * errors[0]


def test_without_images_the_reason_is_given(exported: ModelProto) -> None:
    outcome = apply(exported, QuantizeWeights(8), {}, replace(CONTEXT, calibration=images(0, 0)))
    assert any(s.layer == "repair" and "received 0 calibration images" in s.reason for s in outcome.skipped)


def test_a_layer_can_stay_in_float(exported: ModelProto) -> None:
    outcome = apply(exported, QuantizeWeights(4), {"group": 32, "head": 8}, CONTEXT)
    kinds = {k: t.data_type for k, t in stored(outcome.model).items() if ".weight" in k and not k.endswith("scales")}
    assert kinds["group.weight"] == onnx.TensorProto.FLOAT
    assert kinds["head.weight.codes"] == onnx.TensorProto.INT8
    assert kinds["stem.weight.codes"] == onnx.TensorProto.INT4


def test_a_quantized_file_is_refused(exported: ModelProto) -> None:
    once = apply(exported, QuantizeWeights(4), {}, CONTEXT).model
    with pytest.raises(RecipeError, match="quantized already"):
        apply(once, QuantizeWeights(4), {}, CONTEXT)


@pytest.mark.parametrize(("bits", "packed"), [(4, 1152 // 2), (5, 1152 * 5 // 8), (8, 1152)])
def test_predicted_bytes_are_those_of_the_codes_scales_and_biases(exported: ModelProto, bits: int, packed: int) -> None:
    layer = Layer("group", "conv", 1168, 0, 16, 16, (3, 3), 2, True, (16, 4, 4), 0, "group", (Feed("stem"),))
    groups = (Group("stem", 16, ("stem",)), Group("group", 16, ("group",)))
    profile = Profile((layer,), groups, 1168, 18432, 0, 0, 0)
    tensors = stored(apply(exported, QuantizeWeights(bits), {}, CONTEXT).model)
    parts = [t for name, t in tensors.items() if name.startswith("group.")]
    (cost,) = costs(profile, Recipe((Step("quantize_weights", {"bits": bits}),))).layers
    assert cost.weight_bytes == sum(len(t.raw_data) for t in parts) == packed + 16 * 4 + 16 * 4
