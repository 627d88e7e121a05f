"""Opening models: architectures with weights, wrappings and wrong files, ONNX cards, the guess of the normalization."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from core.cards import NORMALIZATIONS, ModelCard
from core.engine import models
from core.engine.data import Images, to_tensor
from core.engine.train import accuracy
from core.errors import ModelError
from tests.onnx_files import draw, node, write
from tests.shared_data import shared

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(num_classes=4).eval()


@pytest.fixture(scope="module")
def state(squeezenet: nn.Module) -> State:
    return squeezenet.state_dict()


def test_architectures_are_torchvisions() -> None:
    known = set(torchvision.models.list_models(module=torchvision.models))
    assert set(models.architectures()) <= known
    assert {"resnet18", "mobilenet_v3_small", "squeezenet1_1"} <= set(models.architectures())


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "in state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "in model, from DataParallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "half precision": lambda s: {k: v.half() for k, v in s.items()},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_of_an_architecture(how: str, squeezenet: nn.Module, state: State, tmp_path: Path) -> None:
    torch.save(WRAPPED[how](state), tmp_path / "mine.pth")
    source = {"kind": "file", "path": str(tmp_path / "mine.pth"), "architecture": "squeezenet1_1"}
    model = models.open_model({**source, "input_shape": [3, 64, 64], "classes": ["a", "b", "c", "d"]})
    assert model.card == ModelCard(
        *("mine", "mine (squeezenet1_1)", (3, 64, 64), ("a", "b", "c", "d"), *NORMALIZATIONS["ImageNet"]),
        source="mine.pth",
    )
    assert model.file is None
    assert not model.module.training
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), squeezenet(x), atol=1e-2 if "half" in how else 0, rtol=0)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.module.parameters())


def test_safetensors_under_any_name(squeezenet: nn.Module, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.bin")
    model = models.open_model({"kind": "file", "path": tmp_path / "weights.bin", "architecture": "squeezenet1_1"})
    assert model.card.input_shape == (3, 224, 224)
    assert model.card.classes == ("class 0", "class 1", "class 2", "class 3")
    torch.testing.assert_close(dict(model.module.state_dict()), dict(state))


def test_helper_heads_of_training_are_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False).eval()
    torch.save(network.state_dict(), tmp_path / "g.pth")
    model = models.open_model({"kind": "file", "path": tmp_path / "g.pth", "architecture": "googlenet"})
    assert len(model.card.classes) == 3
    assert not any(name.startswith("aux") for name, _ in model.module.named_parameters())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), network(x))


def test_weights_without_counters_open(tmp_path: Path) -> None:
    """As torch wrote them before 0.4.1."""
    network = torchvision.models.resnet18(num_classes=2)
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, tmp_path / "r.pth")
    model = models.open_model({"kind": "file", "path": tmp_path / "r.pth", "architecture": "resnet18"})
    assert not any(t.is_meta for t in model.module.state_dict().values())


def without(key: str) -> Callable[[State], State]:
    return lambda s: {k: v for k, v in s.items() if k != key}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("features.0.bias"), r"features\.0\.bias \(64\) is missing\.$"),
    "classifier missing": (without("classifier.1.weight"), r"classifier\.1\.weight \(\d+, 512, 1, 1\) is missing"),
    "unknown": (lambda s: {**s, "extra": torch.zeros(2, 5)}, r"it has no extra; received one of \(2, 5\)\.$"),
    "shape": (
        lambda s: {**s, "features.0.weight": torch.zeros(8, 3, 3, 3), "extra": torch.zeros(1)},
        r"features\.0\.weight has shape \(8, 3, 3, 3\), the network's is \(64, 3, 3, 3\), and 1 more difference\.$",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_do_not_fit(what: str, state: State) -> None:
    change, sentence = WRONG[what]
    with pytest.raises(ModelError, match="The weights do not fit squeezenet1_1: " + sentence):
        models.load_architecture("squeezenet1_1", change(state))


def classifier(path: Path, shape: tuple[int | str, ...] = ("n", 3, 8, 8)) -> Path:
    nodes = [node("Conv", "x c.weight", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g")]
    return write(path, nodes, {"c.weight": draw(4, 3, 3, 3)}, shape)


def test_card_of_an_onnx_file(tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx")
    model = models.open_model({"kind": "file", "path": path, "mean": [0.5], "std": [0.25]})
    assert model.card.input_shape == (3, 8, 8)
    assert model.card.classes == ("class 0", "class 1", "class 2", "class 3")
    assert (model.card.mean, model.card.std, model.file) == ((0.5,), (0.25,), path)
    assert models.open_model({"kind": "file", "path": classifier(path, (1, 3, 8, 8))}).file is None


def test_a_card_says_that_files_will_take_channels_first(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t c.weight", "c")]
    nodes += [node("GlobalAveragePool", "c", "p"), node("Flatten", "p")]
    path = write(tmp_path / "last.onnx", nodes, {"c.weight": draw(4, 3, 3, 3)}, (1, 8, 8, 3))
    card = models.open_model({"kind": "file", "path": path}).card
    assert card.input_shape == (3, 8, 8)
    assert card.description == models.LAST


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"classes": ["a"]}, "tells 4 classes apart; received 1 names"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "do not fit 3 channels"),
        ({"std": [0.0]}, "deviations over 0"),
        ({"input_shape": [1, 8, 8]}, "takes 3 × 8 × 8 per image; received 1 × 8 × 8"),
        ({"path": "nowhere.onnx"}, "There is no file 'nowhere.onnx'"),
        ({"kind": "url"}, "Unknown kind of model: received 'url'"),
    ],
)
def test_sources_that_do_not_fit(source: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=sentence):
        models.open_model({"kind": "file", "path": classifier(tmp_path / "net.onnx"), **source})


def test_what_is_no_classifier(tmp_path: Path, state: State) -> None:
    path = write(tmp_path / "net.onnx", [node("Relu", "x")])
    with pytest.raises(ModelError, match=r"answers with \(3, 8, 8\); accepted are classifiers"):
        models.open_model({"kind": "file", "path": path})
    with pytest.raises(ModelError, match=r"inputs of shape \(10\); accepted are images"):
        models.open_model({"kind": "file", "path": write(path, [node("Relu", "x")], shape=("n", 10))})
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="name the torchvision architecture"):
        models.open_model({"kind": "file", "path": tmp_path / "w.pth"})
    with pytest.raises(ModelError, match="Unknown architecture: received 'resnet20', accepted are alexnet"):
        models.open_model({"kind": "file", "path": tmp_path / "w.pth", "architecture": "resnet20"})


class Exact(nn.Module):
    """Knows its pictures by heart, and only as `card` normalizes them; the first class otherwise."""

    def __init__(self, card: ModelCard, pictures: NDArray[np.uint8]) -> None:
        super().__init__()
        self.known = to_tensor(pictures, card).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return (torch.cdist(x.flatten(1), self.known) < 1e-2).float()


@pytest.mark.parametrize("name", [name for name, (mean, _) in NORMALIZATIONS.items() if name != "CIFAR-10"])
@pytest.mark.parametrize("labelled", [True, False])
def test_normalization_is_found(name: str, labelled: bool) -> None:
    mean, std = NORMALIZATIONS[name]
    x = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3)).astype(np.uint8)
    card = ModelCard("n", "n", (3, 2, 2), tuple(map(str, range(40))))
    images = Images(x, np.arange(40) if labelled else None)
    found = models.guess_normalization(models.Model(Exact(card.with_(mean=mean, std=std), x), card), images)
    assert (found.mean, found.std) == (mean, std)
    assert found == card.with_(mean=mean, std=std)


def test_close_normalizations_are_decided_on_more_images() -> None:
    """ImageNet's numbers answer 38 of 40 pictures right and come first, CIFAR-10's answer all."""
    x = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3)).astype(np.uint8)
    card = ModelCard("n", "n", (3, 2, 2), tuple(map(str, range(40))))
    better, worse = (
        Exact(card.with_(mean=mean, std=std), x) for mean, std in map(NORMALIZATIONS.get, ("CIFAR-10", "ImageNet"))
    )
    worse.known[1:3] = 99

    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return better(x) + worse(x)

    found = models.guess_normalization(models.Model(Either(), card), Images(x, np.arange(40)))
    assert (found.mean, found.std) == NORMALIZATIONS["CIFAR-10"]


def test_normalization_stays_when_all_are_equal() -> None:
    card = ModelCard("n", "n", (3, 2, 2), ("a", "b"), mean=(0.3,), std=(0.7,))
    blind = models.Model(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), card)
    x = np.zeros((30, 2, 2, 3), np.uint8)
    nn.init.zeros_(blind.module[1].weight)
    assert models.guess_normalization(blind, Images(x, None)) == card
    assert models.guess_normalization(blind, Images(x, np.zeros(30, np.int64))) == card
    with pytest.raises(ModelError, match=r"images are \(2, 2, 1\).*model takes \(2, 2, 3\)"):
        models.guess_normalization(blind, Images(x[..., :1], np.zeros(30, np.int64)))


def test_sure_and_varied_answers_carry_information() -> None:
    """Two sure answers, equally often: ln 2. The same answer, or no idea, on every picture: nothing."""
    x = np.array([0, 255] * 6, np.uint8).reshape(12, 1, 1, 1)
    card = ModelCard("n", "n", (1, 1, 1), ("dark", "light"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    for weight, bias, expected in ((200.0, -100.0, np.log(2)), (0.0, 50.0, 0.0), (0.0, 0.0, 0.0)):
        net[1].weight.data = torch.tensor([[0.0], [weight]])  # type: ignore[union-attr]
        net[1].bias.data = torch.tensor([0.0, bias])  # type: ignore[union-attr]
        assert models.information(net, Images(x, None), card) == pytest.approx(expected, abs=1e-9)


def test_public_checkpoints_are_recognized() -> None:
    with np.load(shared("mlperf_ic01.npz")) as file:
        images = Images(file["x_test"], file["y_test"].astype(np.int64))
    for name, wanted, least in [
        ("resnet20_cifar10", "ImageNet", 0.88),
        ("mlperf_resnet8_cifar10", "0 to 255", 0.85),
    ]:
        model = models.open_model({"kind": "file", "path": shared(f"checkpoints/{name}.onnx")})
        card = models.guess_normalization(model, images)
        assert (card.mean, card.std) == NORMALIZATIONS[wanted]
        blind = models.guess_normalization(model, Images(images.x, None))
        assert accuracy(model.module, images, blind) >= least
        assert accuracy(model.module, images, card) >= least
