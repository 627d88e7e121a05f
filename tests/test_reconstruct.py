"""Closed-form repair: the solution against NumPy's, and networks whose exact repair is known beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.data import Images, to_tensor
from core.engine.least_squares import Normal, as_matrix, as_weight, best_change, patches, solve, values
from core.engine.reconstruct import repair

CARD = ModelCard("net", "net", (4, 7, 6), ("a", "b"), mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int = 64, seed: int = 0) -> Images:
    return Images(np.random.default_rng(seed).integers(0, 256, (count, 7, 6, 4), np.uint8), None)


X = to_tensor(images(40, 1).x, CARD)  # never seen by a repair


def layers() -> dict[str, nn.Conv2d | nn.Linear]:
    torch.manual_seed(0)
    return {
        "conv": nn.Conv2d(4, 6, 3, (2, 1), (1, 2), bias=False),
        "dilated": nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2, padding_mode="reflect"),
        "grouped": nn.Conv2d(4, 6, 3, groups=2),
        "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
        "linear": nn.Linear(6, 5),
    }


@pytest.mark.parametrize("broken", [1.0, float("nan")])
def test_sums_that_rounding_has_spoiled_are_damped_until_they_can_be_solved(broken: float) -> None:
    """Two inputs, of which the second has less than no variance; nothing helps against what is no number."""
    uu = torch.tensor([[[4.0, 0.0], [0.0, -broken]]], dtype=torch.float64)
    ur = torch.tensor([[[2.0], [0.5]]], dtype=torch.float64)
    normal = Normal(1, torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), uu, ur)
    change = solve(normal, 1e-4)[0, :, 0]
    damping = 1e-4 * 1.5 * 100**2  # of the mean of the diagonal, raised twice
    expected = [2 / (4 + damping), 0.5 / (damping - 1)] if broken == 1 else [0.0, 0.0]
    assert change.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", layers())
def test_patches_times_weights_are_the_layers_output(name: str) -> None:
    layer = layers()[name]
    found = patches(layer, X).transpose(0, 1) @ as_matrix(layer, layer.weight)
    bias = 0 if layer.bias is None else layer.bias.view(found.shape[0], 1, -1)
    assert torch.allclose(found + bias, values(layer, layer(X)).transpose(0, 1), atol=1e-5)
    assert torch.equal(as_weight(layer, as_matrix(layer, layer.weight)), layer.weight)
    rows = torch.tensor([5, 0, 17])
    assert torch.equal(patches(layer, X, rows), patches(layer, X)[rows])


@pytest.mark.parametrize("shifts", [True, False])
def test_solution_equals_least_squares_by_numpy(shifts: bool) -> None:
    rng = np.random.default_rng(0)
    u, r = rng.normal(1, 1, (200, 2, 5)), rng.normal(2, 1, (200, 2, 3))
    found = solve(Normal.of(torch.from_numpy(u), torch.from_numpy(r), shifts), 1e-12)
    for group in range(2):
        design = np.column_stack([u[:, group], np.ones(200)]) if shifts else u[:, group]
        expected = np.linalg.lstsq(design, r[:, group], rcond=None)[0][:5]
        np.testing.assert_allclose(found[group], expected, atol=1e-8)


def test_ridge_by_hand() -> None:
    # one input, u = ±1, r = ±2: Cov(u, u) = 1, Cov(u, r) = 2, so D = 2 / (1 + ridge)
    u, r = torch.tensor([[[1.0]], [[-1.0]]]), torch.tensor([[[2.0]], [[-2.0]]])
    assert float(solve(Normal.of(u, r, True), 0.25)) == pytest.approx(1.6)


def test_only_surviving_weights_are_solved() -> None:
    rng = np.random.default_rng(1)
    u, r = rng.normal(0, 1, (300, 1, 8)), rng.normal(0, 1, (300, 1, 4))
    u[:, 0, 1] += 3 * u[:, 0, 0]  # correlated inputs: dropping one must move the other
    free = rng.random((1, 8, 4)) < 0.5
    found = solve(Normal.of(torch.from_numpy(u), torch.from_numpy(r), False), 1e-12, torch.from_numpy(free))
    for column in range(4):
        alive = free[0, :, column]
        expected = np.linalg.lstsq(u[:, 0, alive], r[:, 0, column], rcond=None)[0]
        np.testing.assert_allclose(found[0, alive, column], expected, atol=1e-6)
        assert not found[0, ~alive, column].any()


def test_error_of_a_change_is_what_it_does_to_the_squares() -> None:
    rng = np.random.default_rng(2)
    u, r = rng.normal(1, 1, (50, 1, 3)), rng.normal(2, 1, (50, 1, 2))
    change = rng.normal(0, 1, (3, 2))
    left = r[:, 0] - u[:, 0] @ change
    expected = left.var(0).sum() - r[:, 0].var(0).sum()  # the bias takes the mean away
    found = Normal.of(torch.from_numpy(u), torch.from_numpy(r), True).error(torch.from_numpy(change)[None])
    assert found == pytest.approx(expected)


def test_noise_changes_no_weight() -> None:
    rng = np.random.default_rng(3)
    halves = [
        Normal.of(
            torch.from_numpy(rng.normal(0, 1, (12, 1, 10))), torch.from_numpy(rng.normal(5, 1, (12, 1, 30))), True
        )
        for _ in range(2)
    ]
    change = best_change(*halves)
    assert not change.any()
    assert torch.allclose((halves[0] + halves[1]).shift(change), (halves[0] + halves[1]).r / 24)


class Net(nn.Module):
    """A first convolution whose channels 4–7 are channels 0–3 in another order, so any four can be spared."""

    def __init__(self, kind: str, width: int = 8) -> None:
        super().__init__()
        self.kind = kind
        norm = nn.BatchNorm2d if "norm" in kind else lambda _: nn.Identity()
        inner = width if kind != "concat" else width + 4
        self.first, self.norm1, self.relu = nn.Conv2d(4, width, 3, padding=1), norm(width), nn.ReLU(inplace=True)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width) if kind == "depthwise" else nn.Identity()
        self.second, self.norm2 = nn.Conv2d(inner, 4, 3, padding=1, bias="norm" not in kind), norm(4)
        self.last = nn.Linear(width * 42 if kind == "flatten" else 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.relu(self.norm1(self.first(x))))
        if self.kind == "flatten":
            return self.last(y.flatten(1))
        y = self.norm2(self.second(torch.cat([y, x], 1) if self.kind == "concat" else y))
        y = y + x if "residual" in self.kind else y
        return self.last(self.relu(y).mean((2, 3)))


TWINS = [1, 0, 3, 2]


def twins(kind: str) -> Net:
    torch.manual_seed(1)
    net = Net(kind)
    with torch.no_grad():
        for part in (net.first, net.norm1, net.depth):
            for name, value in [*part.named_parameters(), *part.named_buffers()]:
                if value.ndim:
                    if isinstance(part, nn.BatchNorm2d):
                        value.copy_(torch.rand_like(value) + (0.5 if name != "bias" else 0))
                    value[4:] = value[TWINS]
        if isinstance(net.norm2, nn.BatchNorm2d):
            for value in (net.norm2.weight, net.norm2.bias, net.norm2.running_mean, net.norm2.running_var):
                assert isinstance(value, Tensor)
                value.copy_(torch.rand_like(value) + 0.2)
    return net.eval()


def without_twins(net: Net, kept: list[int]) -> Net:
    """The network with only the channels `kept` of its first layer."""
    small, state = Net(net.kind, len(kept)), net.state_dict()
    for name in state:
        if name.split(".")[0] in ("first", "norm1", "depth") and state[name].ndim:
            state[name] = state[name][kept]
    state["second.weight"] = state["second.weight"][:, [*kept, *range(8, state["second.weight"].shape[1])]]
    if net.kind == "flatten":
        state["last.weight"] = state["last.weight"].view(5, 8, 42)[:, kept].flatten(1)
    small.load_state_dict(state)
    return small.eval()


@pytest.mark.parametrize("kind", ["plain", "norm", "residual", "residual norm", "concat", "depthwise", "flatten"])
def test_spare_channels_are_made_up_for_exactly(kind: str) -> None:
    original, kept = twins(kind), [1, 3, 5, 7]  # one of each pair
    pruned = without_twins(original, kept)
    before = (pruned(X) - original(X)).norm()
    assert repair(pruned, original, images(500), CARD, {"first": kept, "depth": kept}) == ""
    assert (pruned(X) - original(X)).norm() < 2e-3 * before


def test_a_block_makes_up_for_its_shortcut() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", torch.ones(1))
            self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y += x * self.gain  # after the convolution, and in place
            return self.last(y.relu().mean((2, 3)))

    torch.manual_seed(0)
    original = Block().eval()
    changed = copy.deepcopy(original)
    assert isinstance(changed.gain, Tensor)
    changed.gain.fill_(0.25)
    assert repair(changed, original, images(), CARD) == ""
    assert torch.allclose(changed(X), original(X), atol=1e-4)
    centre = (changed.conv.weight - original.conv.weight)[:, :, 1, 1]
    assert torch.allclose(centre, 0.75 * torch.eye(4), atol=1e-4)


def test_two_branches_of_a_sum_are_both_repaired() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(4, 8, 1)
            self.left, self.right, self.relu = nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(8, 5, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (self.left(x) + self.relu(self.right(x))).mean((2, 3))

    torch.manual_seed(0)
    original = Fork().eval()
    changed = copy.deepcopy(original)
    with torch.no_grad():
        changed.left.weight += 0.1 * torch.randn_like(changed.left.weight)
        changed.right.weight += 0.1 * torch.randn_like(changed.right.weight)
    assert repair(changed, original, images(), CARD) == ""
    assert torch.allclose(changed(X), original(X), atol=1e-4)


def mixed(first: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(first(), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 3)).eval()


def test_zeros_stay_and_the_rest_makes_up() -> None:
    original = mixed(lambda: nn.Conv2d(4, 8, 3, padding=1))
    changed = copy.deepcopy(original)
    weight = changed[2].weight
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0.0
    zeros, before = weight == 0, (changed(X) - original(X)).norm()
    repair(changed, original, images(200), CARD)
    assert torch.equal(weight == 0, zeros)
    assert (changed(X) - original(X)).norm() < 0.8 * before
    assert torch.equal(changed[0].weight, original[0].weight)


def test_the_last_factor_answers_for_the_layer_that_was_split() -> None:
    original = mixed(lambda: nn.Conv2d(4, 8, 3, padding=1))
    changed = copy.deepcopy(original)
    changed[2] = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 8, 3))
    rough = (changed(X) - original(X)).norm()
    middle = changed[2][0].weight.clone()
    repair(changed, original, images(200), CARD)
    assert torch.equal(changed[2][0].weight, middle)
    assert (changed(X) - original(X)).norm() < 0.5 * rough


def test_an_unchanged_network_is_left_exactly_as_it_is() -> None:
    original = twins("residual norm")
    same = copy.deepcopy(original)
    assert repair(same, original, images(), CARD) == ""
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), original.parameters(), strict=True))


def test_a_layer_that_runs_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.again(self.first(x)).relu()).mean((2, 3))

    torch.manual_seed(0)
    original = Twice().eval()
    changed = copy.deepcopy(original)
    with torch.no_grad():
        changed.first.weight.mul_(0.5)
        changed.again.weight.mul_(1.1)
    again = changed.again.weight.clone()
    assert repair(changed, original, images(), CARD) == ""
    assert torch.equal(changed.again.weight, again)
    assert torch.allclose(changed.first.weight, original.first.weight, atol=1e-3)


def test_what_cannot_be_repaired_is_said() -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert "cannot be traced" in repair(Choosy(), Choosy(), images(), CARD)
    net = mixed(lambda: nn.Conv2d(4, 8, 3, padding=1))
    assert "received 1 calibration images" in repair(net, net, images(1), CARD)
