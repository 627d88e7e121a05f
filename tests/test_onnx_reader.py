"""The importer: networks from both exporters, names, any batch size, channels that can be removed, files that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from core.engine.formats.onnx_reader import read_file, read_onnx
from core.errors import StudioError
from tests.onnx_files import draw, export_dynamo, export_torchscript, node, run, write
from tests.shared_data import shared


class Shuffle(nn.Module):
    """What makes importing hard, small: residual, depthwise, squeeze-excite, split, channel shuffle, concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16).reshape(16, 1, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        y = torch.cat((a, torch.nn.functional.hardswish(self.depthwise(b))), 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.fc((x + y * gate * self.scale).mean((2, 3)))


@pytest.fixture(scope="module")
def shuffle() -> nn.Module:
    torch.manual_seed(0)
    module = Shuffle().eval()
    module.stem[1].running_mean.normal_()
    module.stem[1].running_var.uniform_(0.5, 2)
    return module


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet10": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4, num_classes=7).eval(),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=7).eval(),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7).eval(),
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval(),
}


def check(module: fx.GraphModule, x: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        found = module(x)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def weighted(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fixed", [False, True], ids=["free", "one image"])
def test_torchscript_exports_of_torchvision(name: str, fixed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = NETWORKS[name](), torch.randn(3, 3, 64, 64)
    imported = read_file(export_torchscript(module, x, tmp_path / "m.onnx", 11 if fixed else 17, fixed))
    with torch.no_grad():
        check(imported.module, x, module(x))  # three images, also where the file was written for one
    assert imported.batch == (1 if fixed else None)
    assert weighted(imported.module) == weighted(module)
    norms = {n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)} if fixed else set()
    assert {n for n, m in imported.module.named_modules() if isinstance(m, nn.BatchNorm2d)} == norms


@pytest.mark.parametrize("style", ["dynamo", "torchscript", "one image"])
def test_pruned_and_exported_again(style: str, shuffle: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 16, 16)
    if style == "dynamo":
        path = export_dynamo(shuffle, x, tmp_path / "m.onnx")
    else:
        path = export_torchscript(shuffle, x, tmp_path / "m.onnx", 12, fixed=style == "one image")
    module = read_onnx(path)
    with torch.no_grad():
        check(module, x, shuffle(x))
    assert weighted(module) == {"stem.0", "depthwise", "squeeze", "excite", "fc"}
    assert isinstance(module.scale, nn.Parameter)
    graph = tp.DependencyGraph().build_dependency(module, (x,), unwrapped_parameters=[(module.scale, 0)])
    group = graph.get_pruning_group(module.squeeze, tp.prune_conv_out_channels, idxs=[1])
    group.prune()
    assert (module.squeeze.out_channels, module.excite.in_channels) == (3, 3)
    with torch.no_grad():
        expected = module(x)
    again = export_dynamo(module, x, tmp_path / "pruned.onnx")
    check(read_onnx(again), x, expected)
    assert np.abs(run(again, x[:2].numpy())[0] - expected[:2].numpy()).max() <= 1e-4


def test_flattened_map_can_lose_channels(tmp_path: Path) -> None:
    """No width is baked in: 8 channels of 4×4 flattened to 128, and to 112 once one of them is gone."""
    nodes = [
        node("Conv", "x c.weight", "c", pads=[1] * 4),
        node("Reshape", "c shape", "f"),
        node("Gemm", "f fc.weight"),
    ]
    weights = {"c.weight": draw(8, 3, 3, 3), "shape": np.array([1, 128]), "fc.weight": draw(128, 5)}
    module = read_onnx(write(tmp_path / "m.onnx", nodes, weights, (1, 3, 4, 4)))
    assert torch.flatten in [n.target for n in module.graph.nodes]
    graph = tp.DependencyGraph().build_dependency(module, (torch.randn(1, 3, 4, 4),))
    graph.get_pruning_group(module.c, tp.prune_conv_out_channels, idxs=[7]).prune()
    assert module.fc.in_features == 112
    with torch.no_grad():
        kept = np.abs(module(torch.ones(2, 3, 4, 4)).numpy())
    assert kept.shape == (2, 5)
    weights["c.weight"][7] = 0  # by hand: a channel of zeros adds nothing
    zeroed = read_onnx(write(tmp_path / "z.onnx", nodes, weights, (1, 3, 4, 4)))
    with torch.no_grad():
        np.testing.assert_allclose(kept, np.abs(zeroed(torch.ones(2, 3, 4, 4)).numpy()), rtol=1e-5)


def test_halves_stay_halves_when_channels_go(tmp_path: Path) -> None:
    nodes = [node("Conv", "x c.weight", "c"), node("Split", "c sizes", "a b", axis=1)]
    weights = {"c.weight": draw(8, 3, 1, 1), "sizes": np.array([4, 4])}
    module = read_onnx(write(tmp_path / "m.onnx", nodes, weights, outputs=["a", "b"]))
    module.c = nn.Conv2d(3, 6, 1)
    assert [tuple(part.shape) for part in module(torch.ones(2, 3, 8, 8))] == [(2, 3, 8, 8), (2, 3, 8, 8)]


def test_shared_weights_stay_one_layer(tmp_path: Path) -> None:
    nodes = [node("Conv", "x head.weight", "a", pads=[1] * 4), node("Conv", "a head.weight", "y", pads=[1] * 4)]
    module = read_onnx(write(tmp_path / "m.onnx", nodes, {"head.weight": draw(3, 3, 3, 3)}))
    assert weighted(module) == {"head"}
    x = draw(2, 3, 8, 8)
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, run(tmp_path / "m.onnx", x)[0], atol=1e-4)


def test_names_that_python_or_fx_reserves(tmp_path: Path) -> None:
    names = ["graph.weight", "lambda.weight", "train.0-1.weight", "a.weight", "a.b.weight"]
    nodes = [node("Conv", f"t{i} {name}", f"t{i + 1}") for i, name in enumerate(names)]
    nodes[0].input[0] = "x"
    weights = {name: draw(3, 3, 1, 1, seed=i) for i, name in enumerate(names)}
    module = read_onnx(write(tmp_path / "m.onnx", nodes, weights, outputs=[f"t{len(names)}"]))
    assert weighted(module) == {"graph_", "lambda_", "train_.0-1", "a_1", "a.b"}
    x = draw(2, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), run(tmp_path / "m.onnx", x)[0], atol=1e-4)


def test_names_from_nodes_where_weights_have_none(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x onnx::1", "a", name="/layer1/layer1.0/conv1/Conv"),
        node("Relu", "a", "b", name="/layer1/layer1.0/Relu"),
        node("Conv", "b 7", "c"),
    ]
    module = read_onnx(
        write(tmp_path / "m.onnx", nodes, {"onnx::1": draw(4, 3, 1, 1), "7": draw(2, 4, 1, 1)}, outputs=["c"])
    )
    layers = [name for name, layer in module.named_modules() if not list(layer.children())]
    assert layers == ["layer1.0.conv1", "layer1.0.relu", "conv_0"]


@pytest.mark.parametrize(
    ("name", "input_shape", "outputs"),
    [
        ("resnet20_cifar10", (3, 32, 32), ((10,),)),
        ("resnet56_cifar10", (3, 32, 32), ((10,),)),
        ("mlperf_resnet8_cifar10", (3, 32, 32), ((10,),)),
        ("ultraface_rfb320", (3, 240, 320), ((4420, 2), (4420, 4))),
        ("fastestdet_coco_352", (3, 352, 352), ((85, 22, 22),)),
    ],
)
def test_public_checkpoints(name: str, input_shape: tuple[int, ...], outputs: tuple[tuple[int, ...], ...]) -> None:
    path = shared(f"checkpoints/{name}.onnx")
    imported = read_file(path)
    assert (imported.input_shape, imported.output_shapes) == (input_shape, outputs)
    assert imported.batch == (None if "resnet" in name and "mlperf" not in name else 1)  # one only says that it is free
    x = draw(2, *input_shape)
    expected = [np.concatenate(parts) for parts in zip(*(run(path, x[i : i + 1]) for i in range(2)), strict=True)]
    with torch.no_grad():
        found = imported.module(torch.from_numpy(x))
    for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-4 * max(1, np.abs(other).max()))


def test_channels_last_file_takes_channels_first(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t c.weight")]
    path = write(tmp_path / "m.onnx", nodes, {"c.weight": draw(4, 3, 3, 3)}, (1, 16, 12, 3))
    imported = read_file(path)
    assert (imported.input_shape, imported.channels_last) == ((3, 16, 12), True)
    x = draw(1, 3, 16, 12)
    expected = run(path, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))[0]
    with torch.no_grad():
        np.testing.assert_allclose(imported.module(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    assert [n.op for n in imported.module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_open_axes_take_the_given_size(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("Relu", "x")], shape=("n", 3, "h", "w"))
    assert read_file(path).input_shape == (3, 224, 224)
    assert read_file(path, (3, 32, 48)).input_shape == (3, 32, 48)
    with pytest.raises(StudioError, match="takes 3 × any × any per image; received 1 × 32 × 32"):
        read_file(path, (1, 32, 32))


@given(data=st.data())
def test_damaged_file_loads_or_is_refused(
    tiny: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    said = ""
    try:
        read_onnx(path)
    except StudioError as error:
        said = str(error)
    assert said == "" or (said.endswith(".") and "\n" not in said)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    nodes = [
        node("Conv", "x c.weight", "c", pads=[1] * 4, strides=[2, 2], group=1),
        node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", "p low high", "s"),
        node("Reshape", "s shape", "f"),
        node("Gemm", "f fc.weight"),
    ]
    weights = {"c.weight": draw(2, 3, 3, 3), "low": np.array([0]), "high": np.array([9]), "shape": np.array([0, -1])}
    path = write(tmp_path_factory.mktemp("tiny") / "m.onnx", nodes, {**weights, "fc.weight": draw(8, 3)})
    return path.read_bytes()
