"""Reading between measured widths and the affine step by hand; operator files that ONNX Runtime runs as they claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from core.engine import latency_table, runtime
from core.engine.latency_table import (
    expected_seconds,
    measure_table,
    operator_file,
    operators_of,
    time_operator,
    with_affine,
)
from core.latency_table import FLOAT, INTEGER, Blocks, LatencyTable, Operator, fit_affine
from core.layers import Feed, Layer, Profile
from core.ranks import Shape


def conv(c_in: int, c_out: int, **more: object) -> Shape:
    return Shape("conv", c_in, c_out, (3, 3), in_size=(8, 8), out_size=(8, 8), **more)  # type: ignore[arg-type]


def test_measured_shapes_are_read_and_others_between_them_in_blocks() -> None:
    """Times of 1 + 0.5 a + 0.25 b + 0.01 a b in blocks of 8."""
    times = {Operator(conv(a, b)): 1 + 0.5 * a + 0.25 * b + 0.01 * a * b for a in (8, 16, 32) for b in (8, 24, 32)}
    table = LatencyTable(times | {Operator(conv(16, 32)): 99.0 - 60.0})
    assert table.operator(conv(16, 32)) == 39.0
    exact = LatencyTable(times)
    assert exact.operator(conv(24, 16)) == pytest.approx(1 + 12 + 4 + 3.84)
    assert exact.operator(conv(20, 11)) == pytest.approx(1 + 12 + 4 + 3.84)  # computed as 24 and 16
    assert exact.operator(conv(25, 16)) > exact.operator(conv(24, 16))


def test_channels_are_computed_in_whole_blocks_of_each_type() -> None:
    """In blocks of 16, 40 and 52 channels take what 48 and 64 took; as int8, whose inputs come by 8, 40 inputs less."""
    kinds, wide = (FLOAT, INTEGER), {(a, b): float(a * b) for a in (16, 32, 48, 64) for b in (16, 32, 48, 64)}
    times = {Operator(conv(a, b), kind): ms for (a, b), ms in wide.items() for kind in kinds}
    table = LatencyTable(times, blocks={FLOAT: Blocks(16, 16), INTEGER: Blocks(8, 16)})
    assert table.operator(conv(40, 52)) == 48 * 64
    assert table.operator(conv(64, 49)) == table.operator(conv(64, 64))
    odd = LatencyTable(times, blocks={FLOAT: Blocks(16, 16, 2.0, 1.5)})
    longer = {(28, 28): 1.0, (30, 28): 2.0, (28, 31): 1.5, (31, 31): 2.0}
    assert {pair: odd.operator(conv(*pair)) / (32 * 32) for pair in longer} == longer
    assert table.operator(conv(40, 52), 8) == pytest.approx(40 * 64)
    assert table.operator(conv(3, 20)) == pytest.approx(8 * 32)  # an image is not filled up to a block
    assert LatencyTable(times).operator(conv(40, 50)) == pytest.approx(40 * 56)


@pytest.mark.parametrize(("into", "out"), [(16, 16), (8, 16), (16, 8), (8, 8)])
def test_blocks_are_told_by_what_a_part_of_one_takes(monkeypatch: pytest.MonkeyPatch, into: int, out: int) -> None:
    def time(operator: Operator, *_: object) -> float:
        x, y = operator.shape.in_channels, operator.shape.out_channels
        return 1e-4 * (-(-x // into) * into) * (-(-y // out) * out) * (2 if x % 4 else 1)

    monkeypatch.setattr(latency_table, "time_operator", time)
    assert latency_table.measure_blocks(FLOAT) == Blocks(into, out, pytest.approx(2), pytest.approx(1))


def test_types_and_families_are_apart() -> None:
    wide, strided = conv(8, 8), Shape("conv", 8, 8, (3, 3), in_size=(8, 8), out_size=(4, 4))
    table = LatencyTable({Operator(wide): 2.0, Operator(wide, INTEGER): 1.0, Operator(strided): 0.5})
    assert table.operator(wide) == 2.0
    assert [table.operator(wide, bits) for bits in (16, 8, 4)] == [2.0, 1.0, 1.0]
    assert table.operator(strided) == 0.5
    unseen = Shape("linear", 100, 70)
    speed = (2 * wide.macs + strided.macs) / 3.5
    assert table.operator(unseen) == pytest.approx(unseen.macs / speed)


def test_a_network_all_in_one_type_takes_its_rows_whatever_bits_are_asked_for() -> None:
    table = LatencyTable({Operator(conv(8, 8)): 2.0, Operator(conv(8, 8), INTEGER): 1.0, Operator(conv(8, 16)): 3.0})
    integer = table.all_in(INTEGER)
    assert [integer.operator(conv(8, 8), bits) for bits in (32, 8)] == [1.0, 1.0]
    assert Operator(conv(8, 16)) not in integer.times
    assert [table.all_in(FLOAT).operator(conv(8, 16), bits) for bits in (32, 8)] == [3.0, 3.0]


def test_how_long_timing_takes_by_hand() -> None:
    """A model of 1 million MACs in 5 ms: a twentieth of it takes 0.25 ms, twenty times with its maker's turns."""
    profile = Profile((), (), 0, 1_000_000, 0, 0, 0, 5.0)
    small, large = conv(8, 8), Shape("conv", 64, 64, (3, 3), in_size=(32, 32), out_size=(32, 32))
    runs = 2 * latency_table.FEWEST * 5.0 / 1000 * large.macs / 1e6
    assert runs > 3
    found = expected_seconds(profile, [Operator(small), Operator(large)], 0.04)
    assert found == pytest.approx(0.04 + runs)
    assert expected_seconds(Profile((), (), 0, 1, 0, 0, 0, None), [Operator(small)], 0.04) == float("inf")


def test_the_affine_step_by_hand() -> None:
    sums = np.array([1.0, 2.0, 4.0])
    assert fit_affine(sums, 0.8 * sums - 0.1) == pytest.approx((0.8, -0.1))
    assert fit_affine(sums[:1], np.array([3.0])) == (3.0, 0.0)
    table = with_affine(LatencyTable({}), [1.0, 2.0], [2.5, 4.5])
    assert (table.slope, table.intercept) == pytest.approx((2.0, 0.5))
    assert table.whole(3.0) == pytest.approx(6.5)
    assert table.operators(table.whole(3.0)) == pytest.approx(3.0)


def test_a_table_travels_as_json() -> None:
    import json

    table = LatencyTable({Operator(conv(8, 8), INTEGER): 0.25}, 0.9, 0.1, 2, 4, {INTEGER: Blocks(8, 16, 2.0)}, "x86_64")
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    before = {k: v for k, v in table.to_json().items() if k != "blocks"} | {"block": 8}
    assert LatencyTable.from_json(before) == replace(table, blocks={})


SHAPES = [
    conv(16, 24),
    Shape("conv", 6, 8, (5, 3), 2, (9, 8), (5, 4)),
    Shape("conv", 4, 6, (2, 2), in_size=(8, 8), out_size=(4, 4)),
    Shape("depthwise", 12, 12, (3, 3), 12, (8, 8), (8, 8)),
    Shape("linear", 20, 5),
]


@pytest.mark.parametrize("kind", [FLOAT, INTEGER])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{s.kernel}")
def test_operator_files_run_and_have_the_shape_they_claim(shape: Shape, kind: str) -> None:
    session = runtime.open_file(operator_file(Operator(shape, kind), 3))
    source = session.get_inputs()[0]
    x = np.ones(source.shape, np.uint8 if kind == INTEGER else np.float32)
    made = session.run(None, {source.name: x})[0]
    assert made.shape == (3, shape.out_channels, *(() if shape.kind == "linear" else shape.out_size))
    assert made.dtype == x.dtype


def test_the_integer_file_is_one_integer_operator(tmp_path: object) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/out.onnx"
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(operator_file(Operator(conv(16, 16), INTEGER)), options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(f"{tmp_path}/out.onnx").graph.node]
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds


def test_an_operator_takes_what_it_adds_to_the_one_that_makes_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are opened to see what runs; times by hand: 0.3 ms for the maker, 1.1 ms for both."""
    seen: list[list[str]] = []

    def fastest(files: list[bytes], *_: object) -> list[float]:
        seen.extend([node.op_type for node in onnx.load_from_string(file).graph.node] for file in files)
        return [0.3, 1.1][: len(files)]

    monkeypatch.setattr(latency_table, "_fastest", fastest)
    assert time_operator(Operator(conv(16, 24))) == pytest.approx(0.8)
    assert time_operator(Operator(Shape("linear", 20, 5))) == 0.3
    assert seen == [["Conv", "Relu"], ["Conv", "Relu"] * 2, ["Gemm", "Relu"]]
    monkeypatch.setattr(latency_table, "_fastest", lambda *_: [1.2, 1.0])
    assert time_operator(Operator(conv(16, 24))) == pytest.approx(0.02)  # noise, but never free


@pytest.mark.parametrize("kind", [FLOAT, INTEGER])
def test_the_maker_makes_what_the_operator_reads(kind: str) -> None:
    assert time_operator(Operator(Shape("conv", 6, 8, (5, 3), 2, (9, 8), (5, 4)), kind), batch=2, seconds=0.0) > 0


def test_times_are_of_this_machine_and_grow_with_the_work() -> None:
    small, large = (time_operator(Operator(conv(c, c)), seconds=0.05) for c in (8, 128))
    assert 0 < small < large  # 256 times the work


def test_what_a_model_needs_is_each_layer_at_four_widths_once() -> None:
    def layer(name: str, kind: str, c_in: int, c_out: int, groups: int = 1) -> Layer:
        weights = c_in // groups * c_out * 9
        return Layer(
            name, kind, weights, weights * 64, c_in, c_out, (3, 3), groups, False, (c_out, 8, 8), 0, name,
            (Feed("x"),), None, (c_in, 8, 8),
        )  # fmt: skip

    layers = (layer("a", "conv", 32, 32), layer("b", "conv", 32, 32), layer("c", "depthwise", 32, 32, 32))
    found = operators_of(Profile(layers, (), 0, 0, 0, 0, 0), (FLOAT,))
    assert len(found) == 16 + 4
    assert {key.shape.in_channels for key in found} == {8, 16, 24, 32}
    table = measure_table(found[:2], seconds=0.0)
    assert set(table.times) == set(found[:2])
    assert all(ms > 0 for ms in table.times.values())
