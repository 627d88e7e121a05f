"""The prefix cache gives the very same logits as a full run, on every way that networks are wired."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.perturb import swapped, weight_of
from core.engine.replay import Replay


class Wired(nn.Module):
    """In-place activations and sums, a residual, a concatenation and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.side = nn.Conv2d(3, 8, 1)
        self.gate = nn.Linear(8, 8)
        self.c = nn.Conv2d(16, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        x = self.relu(self.norm(self.a(x)))
        y = F.relu(self.b(x), inplace=True)
        y += side  # overwrites what is kept when only `side` changes
        y = y.add_(x)
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))
        y = torch.cat([y * gate[:, :, None, None], x], 1)
        return self.head(F.adaptive_avg_pool2d(self.c(y).relu_(), 2).flatten(1))


class Overwriting(nn.Module):
    """Reads a value after an activation overwrote it: the graph without overwriting would answer differently."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1))
        z = y.mul_(2)
        return self.b(y + z)


class Branching(nn.Module):
    """Cannot be traced: its path depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1))
        return self.b(y if y.sum() > 0 else -y)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Wired, Branching, Overwriting])
def test_every_layer_replays_exactly(kind: type[nn.Module], x: Tensor) -> None:
    torch.manual_seed(1)
    module = kind().eval()
    layers = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    replay = Replay(module, x, layers)
    for chosen in [[name] for name in layers] + [layers[:2], layers]:
        weights = {name: weight_of(module, name) * 0.5 for name in chosen}
        with torch.no_grad(), swapped(module, weights):
            expected = module(x)
        for _ in range(2):  # the first run must leave what is kept as it was
            assert torch.equal(replay.run(weights)[0], expected), chosen
    with torch.no_grad():
        assert torch.equal(replay.run({})[0], module(x))  # its own weights are back


def test_only_what_a_suffix_reads_is_kept(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    replay = Replay(net, x, ("2", "5"))
    assert {str(node) for node in replay.kept} == {"_1", "_4"}  # what layers 2 and 5 read; the second is the features
    assert replay.kept_bytes == 4 * 6 * (4 * 6 * 6 + 64)
    ran: list[str] = []
    for name, part in replay.module.named_children():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    _, features = replay.run({"2": weight_of(net, "2") * 2})
    assert ran == ["2", "3", "4", "5"]
    assert features.shape == (6, 64)


def test_why_it_is_run_whole(x: Tensor) -> None:
    assert "control flow" in Replay(Branching(), x, ("a",)).reason
    assert Replay(Wired(), x, ("a",)).reason == ""
    assert "overwriting" in Replay(Overwriting(), x, ("a",)).reason


def test_the_users_module_is_left_alone(x: Tensor) -> None:
    module = Wired()
    Replay(module, x, ("a",)).run({"a": weight_of(module, "a") * 0})
    assert module.relu.inplace
    assert module.training
    assert weight_of(module, "a").abs().sum() > 0
