"""Quantization: what becomes integer and what stays, ranges from the images that were asked for, and the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from core.engine import calibrated, evaluate, runtime
from core.engine.context import silent
from core.engine.data import Images, to_input
from core.engine.formats import onnx_int8, onnx_writer
from core.engine.techniques import quantize
from core.errors import DataError
from core.options import Quantize
from tests.tiny import CARD, tiny_context, tiny_data, tiny_model

LAYERS = {"stem", "block.0", "block.2", "down", "head"}
MODES = ("int8", "int8_dynamic", "float16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    path = tmp_path_factory.mktemp("quantize") / "tiny.onnx"
    onnx_writer.export(tiny_model().module, CARD, path)
    return onnx.load(path)


def weights(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def answers(model: ModelProto, images: Images) -> NDArray[np.float32]:
    return runtime.run(runtime.open_file(model.SerializeToString()), to_input(images.x, CARD))


@pytest.mark.parametrize("mode", MODES)
def test_every_layer_is_quantized_keeps_its_name_and_answers_as_before(mode: str, plain: ModelProto) -> None:
    before = plain.SerializeToString(deterministic=True)
    outcome = quantize.apply(plain, Quantize(mode=mode), {}, tiny_context())
    assert plain.SerializeToString(deterministic=True) == before
    assert quantize.quantized_layers(outcome.model) == LAYERS
    assert outcome.skipped == ()
    onnx.checker.check_model(outcome.model, full_check=True)
    test = tiny_data().test
    same = answers(outcome.model, test).argmax(1) == answers(plain, test).argmax(1)
    assert same.mean() >= 0.98
    assert outcome.model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert outcome.model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_at_32_bits_keeps_its_weights_and_the_others_do_not(mode: str, plain: ModelProto) -> None:
    layers = {"block": 32, "head": 32}  # a container stands for what is in it
    model = quantize.apply(plain, Quantize(mode=mode), layers, tiny_context()).model
    assert quantize.quantized_layers(model) == {"stem", "down"}
    before, after = weights(plain), weights(model)
    for name in ("block.0.weight", "block.2.weight", "head.weight"):
        kept = [value for value in after.values() if value.dtype == np.float32 and value.size == before[name].size]
        assert any(np.array_equal(value.ravel(), before[name].ravel()) for value in kept) or np.array_equal(
            kept[0].reshape(before[name].T.shape).T, before[name]
        )


@pytest.mark.parametrize("mode", MODES)
def test_all_layers_at_32_bits_leave_the_file_as_it_was(mode: str, plain: ModelProto) -> None:
    model = quantize.apply(plain, Quantize(mode=mode, bits=32), {}, tiny_context()).model
    assert model.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


def test_one_layer_alone_can_be_quantized(plain: ModelProto) -> None:
    model = quantize.apply(plain, Quantize(bits=32), {"down": 8}, tiny_context()).model
    assert quantize.quantized_layers(model) == {"down"}
    fed = [node for node in model.graph.node if node.name in ("stem", "block.0", "relu")]
    assert all("Quantize" not in value for node in fed for value in node.input)


@pytest.mark.parametrize(("bits", "largest"), [("7", 64), ("8", 127)])
def test_weights_use_the_bits_they_were_given(bits: str, largest: int, plain: ModelProto) -> None:
    model = quantize.apply(plain, Quantize(weights=bits), {}, tiny_context()).model
    stored = [value for name, value in weights(model).items() if value.dtype == np.int8 and value.ndim > 1]
    assert len(stored) == len(LAYERS)
    assert [int(np.abs(value.astype(int)).max()) for value in stored] == [largest] * len(stored)
    assert {e.key: e.value for e in model.metadata_props}["quantization"] == f"int8, {bits}-bit weights"


def test_weights_have_one_scale_per_output_channel_that_reproduces_them(plain: ModelProto) -> None:
    """|w - scale · q| is at most half a scale, and the scale is the channel's largest weight over 127."""
    model = quantize.apply(plain, Quantize(weights="8", compensate=False), {}, tiny_context()).model
    before, after = weights(plain)["down.weight"], weights(model)
    quantized, scale = after["down.weight_quantized"], after["down.weight_scale"]
    assert scale.shape == (24,)
    np.testing.assert_allclose(scale, np.abs(before).reshape(24, -1).max(1) / 127, rtol=1e-5)
    error = np.abs(before - quantized.astype(np.float32) * scale[:, None, None, None])
    assert (error <= scale[:, None, None, None] * 0.5001).all()


@pytest.mark.parametrize(("kind", "expected"), [("uint8", np.uint8), ("int8", np.int8)])
def test_activations_have_the_type_that_was_asked_for(kind: str, expected: type, plain: ModelProto) -> None:
    model = quantize.apply(plain, Quantize(activations=kind), {}, tiny_context()).model
    points = weights(model)
    made = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert made
    assert {points[node.input[2]].dtype.type for node in made} == {expected}


def input_scale(model: ModelProto) -> float:
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input")
    return float(weights(model)[first.input[1]])


def test_ranges_come_from_the_images_that_were_asked_for_and_no_others(plain: ModelProto) -> None:
    """Inputs are (pixel / 255 - 0.5) / 0.25; the scale is their range, widened to 0, over 255."""
    x = np.full((40, 12, 12, 3), 128, np.uint8)
    x[0, 0, 0], x[1, 0, 0] = 51, 204  # -1.2 and 1.2
    x[30, 0, 0] = 255  # 2.0, but only the first 16 images are used
    context = replace(tiny_context(), calibration=Images(x, None))
    few = quantize.apply(plain, Quantize(images=16), {}, context).model
    many = quantize.apply(plain, Quantize(images=32), {}, context).model
    assert input_scale(few) == pytest.approx(2.4 / 255, rel=1e-4)
    assert input_scale(many) == pytest.approx(3.2 / 255, rel=1e-4)


def test_percentile_ignores_a_rare_outlier_and_minmax_does_not(plain: ModelProto) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(100, 156, (64, 12, 12, 3)).astype(np.uint8)
    x[5, 3, 3, 0] = 255
    context = replace(tiny_context(), calibration=Images(x, None))
    scales = {
        name: input_scale(quantize.apply(plain, Quantize(calibration=name, images=64), {}, context).model)
        for name in ("minmax", "percentile")
    }
    assert scales["percentile"] < 0.6 * scales["minmax"]


@pytest.mark.parametrize("better", ["minmax", "percentile"])
def test_auto_takes_the_calibration_that_agrees_more_on_validation_images(
    better: str, plain: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finds ranges a hundred times too small, so everything is clipped."""
    calibrate, seen = onnx_int8.calibrate, []

    def spoiled(model: ModelProto, x: NDArray[np.float32], method: str, report: object) -> onnx_int8.Calibrated:
        seen.append(method)
        return calibrate(model, x if method == better else x * np.float32(0.01), "minmax", silent)

    monkeypatch.setattr(onnx_int8, "calibrate", spoiled)
    model = quantize.apply(plain, Quantize(calibration="auto", equalize=False), {}, tiny_context()).model
    assert seen == ["minmax", "percentile"]
    test = tiny_data().test
    assert (answers(model, test).argmax(1) == answers(plain, test).argmax(1)).mean() >= 0.98


def test_entropy_calibration_answers_as_before(plain: ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    model = quantize.apply(plain, Quantize(calibration="entropy"), {}, tiny_context()).model
    assert capfd.readouterr().out == ""  # the library prints its progress
    test = tiny_data().test
    assert (answers(model, test).argmax(1) == answers(plain, test).argmax(1)).mean() >= 0.95


def test_the_mean_over_a_whole_map_gets_its_integer_kernel(plain: ModelProto) -> None:
    assert [n.op_type for n in plain.graph.node if n.name == "pool"] == ["ReduceMean"]
    model = quantize.apply(plain, Quantize(), {}, tiny_context()).model
    assert [n.op_type for n in model.graph.node if n.name == "pool"] == ["GlobalAveragePool"]
    assert set(weights(model)).isdisjoint({"val_0"})
    used = {name for node in model.graph.node for name in node.input}
    assert set(weights(model)) <= used


def test_layer_errors_are_measured_past_the_quantization(plain: ModelProto, tmp_path: Path) -> None:
    onnx_writer.save(plain, tmp_path / "a.onnx")
    onnx_writer.save(quantize.apply(plain, Quantize(), {}, tiny_context()).model, tmp_path / "b.onnx")
    errors = evaluate.layer_error(tmp_path / "a.onnx", tmp_path / "b.onnx", tiny_data().calibration, CARD)
    assert set(errors) == LAYERS
    assert all(0 < error < 0.1 for error in errors.values()), errors


def test_without_calibration_images_it_says_what_to_do(plain: ModelProto) -> None:
    context = replace(tiny_context(), calibration=Images(np.zeros((0, 12, 12, 3), np.uint8), None))
    with pytest.raises(DataError, match="needs calibration images"):
        quantize.apply(plain, Quantize(), {}, context)


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "sse4_2 avx2 fma", False),
        ("x86_64", "avx2 avx512f avx512_vnni", True),
        ("AMD64", "avx2 avx_vnni", True),
        ("aarch64", "asimd", True),
    ],
)
def test_seven_bits_only_where_sums_overflow(
    machine: str, flags: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : X\nflags : {flags}\n")
    monkeypatch.setattr(calibrated.platform, "machine", lambda: machine)
    assert calibrated.sums_are_exact(tmp_path / "cpuinfo") is exact
    monkeypatch.setattr(calibrated, "sums_are_exact", lambda: exact)
    assert calibrated.weight_bits(Quantize()) == (8 if exact else 7)
