"""First-order moves against torch.func, and the second-order KL against that of small changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine import fisher
from core.engine.fisher import moves, parcels, rank_cells, second_order
from core.engine.perturb import Network, perturb, repair, sparsify, swapped, weight_of
from core.engine.sensitivity import settings, settings_of
from core.errors import Cancelled
from core.layers import Feed, Profile
from tests.branching import PROFILE, images, layer, make_net, make_network


@pytest.fixture
def network() -> Network:
    return make_network(make_net())


def test_fisher_against_gradients_of_single_images(network: Network) -> None:
    net = network.module
    x, y = images(20), torch.arange(20) % 3
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, values, (image[None],)), label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    for cell in rank_cells(network, x, y, settings(PROFILE)):
        moves, energy = torch.zeros(20), torch.zeros(2)
        for name, weight in perturb(network, {(cell.layer, cell.technique): cell.level}).items():
            change = weight - weight_of(net, name)
            moves += (gradients[f"{name}.weight"] * change).flatten(1).sum(1)
            energy += torch.stack([change.square().sum(), weight_of(net, name).square().sum()])
        assert cell.fisher == pytest.approx(float(moves.square().mean()), rel=1e-3, abs=1e-9)
        assert cell.weight_error == pytest.approx(float(energy[0] / energy[1]), rel=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_transposed_convolution_has_its_gradient_too(groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 6, 3, stride=2, groups=groups), nn.Flatten(), nn.Linear(6 * 17 * 17, 3))
    profile = Profile((layer("0", "conv_transpose", 3, 6, "", Feed("input")),), PROFILE.groups[:1], 0, 0, 0, 0, 0)
    x, y = images(2), torch.tensor([0, 2])
    (cell,) = rank_cells(Network(net, profile, {}, {}), x, y, [(("0", "prune_weights"), 0.5)])
    moves = []
    for i in range(2):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        change = sparsify(weight_of(net, "0"), 0.5) - weight_of(net, "0")
        moves.append(float((net[0].weight.grad * change).sum()) ** 2)
    assert cell.fisher == pytest.approx(sum(moves) / 2, rel=1e-4)


def test_changes_of_weights_and_biases_move_the_answers_as_they_do_when_they_are_small(network: Network) -> None:
    """Every layer that can be solved again, a thousandth of the way: the logits move by as much as is foreseen."""
    net = network.module
    x, asked = images(20), torch.eye(3)[:, None].expand(3, 20, 3)
    for group in ("stem", "inner", "pick"):
        weights, biases = repair(network, group, 0.5)
        small = {n: weight_of(net, n) + 1e-3 * (w - weight_of(net, n)) for n, w in weights.items()}
        shifted = {
            n: net.get_submodule(n).bias.detach() + 1e-3 * (b - net.get_submodule(n).bias.detach())
            for n, b in biases.items()
        }
        (foreseen,) = moves(network, x, [(small, shifted)], asked).unbind(2)
        with torch.no_grad():
            before = net(x)
            with swapped(net, small, shifted):
                moved = net(x) - before
        torch.testing.assert_close(foreseen.T, moved, atol=2e-2 * float(moved.abs().max()), rtol=0.05)


def test_second_order_is_the_divergence_of_small_changes(network: Network) -> None:
    net = network.module
    x = images(20)
    weight_of(net, "head").mul_(20)  # sure of itself, so that there is a divergence to speak of
    small = {"pick": weight_of(net, "pick") * 1.01, "head": weight_of(net, "head") * 0.99}
    with torch.no_grad():
        before = net(x)
        with swapped(net, small):
            after = net(x)
    p, q = (before.double() / 2).softmax(1), (after.double() / 2).softmax(1)
    found = second_order(network, x, before, [(small, {})], 2.0)[:, 0]
    torch.testing.assert_close(found.double(), (p * (p.log() - q.log())).sum(1), rtol=0.1, atol=1e-6)


def test_what_does_not_fit_at_once_is_followed_by_the_parcel(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, cells = images(20), torch.arange(20) % 3, settings(PROFILE)
    whole = rank_cells(network, x, y, cells)
    assert [len(parcel) for parcel in parcels(settings_of(network, cells))] == [len(cells)]
    monkeypatch.setattr(fisher, "FIRST_BYTES", 500)
    monkeypatch.setattr(fisher, "MEMORY_BYTES", 2000)
    monkeypatch.setattr(fisher, "GRADIENTS", 1)
    found = list(parcels(settings_of(network, cells)))
    assert len(found) > 5
    sizes = [sum(w.nbytes for s in parcel for weights, _ in s.altered for w in weights.values()) for parcel in found]
    assert all(size > bound for size, bound in zip(sizes[:-1], (500, 1000, *[2000] * len(sizes)), strict=False))
    assert [(s.key, s.level) for parcel in found for s in parcel] == cells
    for one, other in zip(rank_cells(network, x, y, cells), whole, strict=True):
        assert one.fisher == pytest.approx(other.fisher, rel=1e-4, abs=1e-12)


def test_who_waits_for_gradients_can_stop(network: Network) -> None:
    def stop(message: str) -> None:
        raise Cancelled(message)

    with pytest.raises(Cancelled, match="Following gradients: 16 of 20 images"):
        moves(network, images(20), [({}, {})], torch.ones(1, 20, 3), stop)
