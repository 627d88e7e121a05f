"""Settings against really smaller networks, and a table that goes on after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.fisher import second_order
from core.engine.perturb import (
    Network,
    describe,
    fake_quantize,
    least_important,
    perturb,
    reconstruct,
    repair,
    sparsify,
    swapped,
    to_matrix,
    weight_of,
)
from core.engine.sensitivity import enough_images, measure_cells, rows_of, settings
from core.engine.techniques import factorize
from core.engine.telling import answers, corrected, telling
from core.errors import Cancelled
from core.options import Factorize
from core.ranks import spatial_rank
from core.sensitivity_table import LEVELS, read_lines, read_table
from tests.branching import CARD, PROFILE, Net, images, make_net, make_network
from tests.profiles import resnet


@pytest.fixture
def net() -> Net:
    return make_net()


@pytest.fixture
def network(net: Net) -> Network:
    return make_network(net)


def keep(part: nn.Module, out: Tensor | None = None, into: Tensor | None = None) -> None:
    """Cut a layer down to output channels `out` and input channels `into`, by hand."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if out is not None and hasattr(part, name):
            getattr(part, name).data = getattr(part, name).data[out]
    if into is not None:
        part.weight.data = part.weight.data[:, into]


def cut(net: Net, group: str, removed: Tensor) -> Net:
    """The network that really has fewer channels."""
    small = copy.deepcopy(net)
    left = torch.tensor([c for c in range({"stem": 6, "inner": 4, "pick": 5}[group]) if c not in removed])
    if group == "stem":
        for part in (small.stem, small.norm, small.dw, small.outer):
            keep(part, left)
        small.dw.groups = len(left)
        keep(small.inner, into=left)
        keep(small.pick, into=torch.cat([torch.arange(3), 3 + left]))
    elif group == "inner":
        keep(small.inner, left)
        keep(small.outer, into=left)
    else:
        keep(small.pick, left)
        keep(small.head, into=(left[:, None] * 4 + torch.arange(4)).flatten())
    return small


@pytest.mark.parametrize("group", ["stem", "inner", "pick"])
def test_removed_channels_answer_like_the_smaller_network(net: Net, network: Network, group: str) -> None:
    removed = least_important(network, group, 0.5)
    assert len(removed) == {"stem": 3, "inner": 2, "pick": 2}[group]
    with torch.no_grad():
        expected = cut(net, group, removed)(images(4))
        with swapped(net, perturb(network, {(group, "prune_channels"): 0.5})):
            torch.testing.assert_close(net(images(4)), expected)


@pytest.mark.parametrize("removed", [0, 3])
def test_what_others_can_take_over_is_foreseen_exactly(net: Net, network: Network, removed: int) -> None:
    """Channel 0 is half of channel 1, channel 3 always the same: weights make up for one, the bias for the other."""
    with torch.no_grad():
        net.inner.weight[0], net.inner.bias[0] = net.inner.weight[1] / 2, net.inner.bias[1] / 2
        net.inner.weight[3], net.inner.bias[3] = 0.0, 2.0
    pixels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
    importance = {**network.importance, "inner": np.where(np.arange(4) == removed, 0.0, 1.0)}
    network = replace(describe(net, CARD, PROFILE, Images(pixels, None)), importance=importance)
    x = to_tensor(pixels, CARD)
    with torch.no_grad():
        expected = net(x)
        with swapped(net, perturb(network, {("inner", "prune_channels"): 0.25})):
            harm = (net(x) - expected).abs().max()
        with swapped(net, *repair(network, "inner", 0.25)):
            assert (net(x) - expected).abs().max() < 0.01 * harm


def test_inputs_that_hardly_vary_are_solved_for_too(net: Net, network: Network) -> None:
    """As in networks that were never trained: of sums in float32 their rounding is all that is left."""
    with torch.no_grad():
        net.stem.bias += 1e4
        net.inner.bias += 1e4
    pixels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
    flat = describe(net, CARD, PROFILE, Images(pixels, None))
    weights, _ = repair(flat, "inner", 0.5)
    assert bool(torch.isfinite(weights["outer"]).all())


def test_a_consumer_of_which_nothing_was_observed_only_loses_channels(network: Network) -> None:
    blind = replace(network, reads={})
    weights, biases = repair(blind, "stem", 0.5)
    plain = perturb(blind, {("stem", "prune_channels"): 0.5})
    assert not biases
    assert weights.keys() == plain.keys() == {"inner", "pick"}
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_the_smallest_filters_go_first(net: Net) -> None:
    """Summed over the layers that make and read the same channels: channel 2 of the stem has the smallest weights."""
    with torch.no_grad():
        for part in (net.stem, net.dw, net.outer):
            part.weight[2] *= 0.01
        net.norm.weight[2] = 0
    network = describe(net, CARD, PROFILE, Images(np.zeros((4, 8, 8, 3), np.uint8), None))
    assert least_important(network, "stem", 1 / 6).tolist() == [2]


def test_weights_by_hand() -> None:
    weight = torch.tensor([[4.0, -1.0], [0.5, 3.0]])
    assert sparsify(weight, 0.5).tolist() == [[4, 0], [0, 3]]
    assert fake_quantize(weight, 2).tolist() == [[4, 0], [0, 3]]  # steps of 4 and 3: 0.5 / 3 rounds to 0
    assert fake_quantize(torch.tensor([[7.0, 3.4, -7.0]]), 4).tolist() == [[7, 3, -7]]


def test_low_rank_error_is_what_the_dropped_singular_values_hold(net: Net) -> None:
    """Without images the factors are the plain SVD's."""
    network = describe(net, CARD, PROFILE, Images(np.zeros((0, 8, 8, 3), np.uint8), None))
    weight = weight_of(net, "inner")
    kept = spatial_rank(0.5, (3, 3), 6, 4)
    values = torch.linalg.svdvals(to_matrix(weight))
    error = (reconstruct(network, "inner", 0.5) - weight).square().sum()
    torch.testing.assert_close(error, values[kept:].square().sum())
    for name in ("inner", "pick", "head"):
        torch.testing.assert_close(reconstruct(network, name, 1.0), weight_of(net, name))


def test_low_rank_weights_are_the_ones_that_factorize_makes(net: Net, network: Network) -> None:
    layers = {"stem": 1.0, "pick": 1.0, "outer": 1.0, "head": 1.0, "inner": 0.4}
    pixels = Images(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), None)
    context = Context(CARD, pixels, pixels, pixels, False, None)
    split = factorize.apply(copy.deepcopy(net), Factorize(repair=False), layers, context).model
    with torch.no_grad(), swapped(net, perturb(network, {("inner", "factorize"): 0.4})):
        torch.testing.assert_close(net(images(4)), split(images(4)), rtol=1e-4, atol=1e-5)
    assert isinstance(split.inner, nn.Sequential)


def test_settings_join_on_one_layer(network: Network) -> None:
    both = perturb(network, {("outer", "quantize"): 4, ("inner", "prune_channels"): 0.5})
    pruned = perturb(network, {("inner", "prune_channels"): 0.5})["outer"]
    assert torch.equal(both["outer"], fake_quantize(pruned, 4))


def test_blocked_groups_and_depthwise_layers_have_no_row() -> None:
    assert rows_of(PROFILE, "prune_channels") == ["stem", "inner", "side", "pick"]
    assert "dw" not in rows_of(PROFILE, "factorize")
    assert rows_of(PROFILE, "quantize") == ["stem", "dw", "inner", "outer", "side", "pick", "head"]
    found = settings(PROFILE)
    assert len(found) == len(set(found)) == 4 * 7 + 7 * 5 + 6 * 5 + 7 * 6
    assert {level for _, level in found[: 4 + 7 + 6 + 7]} == {levels[0] for levels in LEVELS.values()}


@pytest.mark.parametrize("count", [16, 80])  # all of them, and more than are looked at
def test_measures_by_hand_and_without_labels(net: Net, network: Network, tmp_path: Path, count: int) -> None:
    x, y = images(count), torch.arange(count) % 3
    net.head.weight.data *= 20  # sure of itself, so that KL has a direction
    table = measure_cells(network, x, y, tmp_path / "labelled.jsonl", {"images": "a"})
    cell = table.cells[("pick", "quantize", 2)]
    index, w = telling(answers(net, x), 32, 2.0)
    changed = {"pick": fake_quantize(net.pick.weight.detach(), 2)}
    with torch.no_grad():
        whole, before = net(x), net(x[index])
        with swapped(net, changed):
            after = net(x[index])
    p, q = (before / 2).softmax(1), (after / 2).softmax(1)
    kl = (p * (p.log() - q.log())).sum(1)
    foreseen = second_order(network, x, whole, [(changed, {})], 2.0)[:, 0]
    expected = float(w @ kl) if count == 16 else corrected(kl, w, foreseen[index], float(foreseen.mean()))
    assert cell.kl == pytest.approx(expected, rel=1e-3)
    won = [(logits.argmax(1) == y[index]).float() for logits in (before, after)]
    assert cell.accuracy_loss == pytest.approx(float(w @ (won[0] - won[1])))
    noise = float((w @ (after - before).square().sum(1)) / (w @ before.square().sum(1)))
    assert cell.sqnr_db == pytest.approx(-10 * torch.tensor(noise).log10().item(), rel=1e-3)
    assert cell.cosine is not None
    assert 0 < cell.cosine < 1
    blind = measure_cells(network, x, None, tmp_path / "blind.jsonl", {"images": "a"})
    assert {c.kl for c in blind.cells.values()} == {c.kl for c in table.cells.values()}
    assert all(c.accuracy_loss is None and c.fisher is not None for c in blind.cells.values())
    assert table.progress(len(settings(PROFILE))) == 1.0
    pairs = np.array([(c.kl, c.kl_repaired) for c in table.cells.values() if c.technique == "prune_channels"])
    assert pairs[:, 1].mean() < 0.8 * pairs[:, 0].mean()
    assert all(c.kl_repaired is None for c in table.cells.values() if c.technique != "prune_channels")


def test_a_deeper_network_is_measured_on_fewer_images_but_never_on_few() -> None:
    """Cells and what each runs again grow with depth: with images held, time would grow with its square."""
    counts = {len(p.tunable): enough_images(p) for p in map(resnet, (1, 3, 9, 18))}
    assert counts == {10: 32, 22: 32, 58: 12, 112: 6}


def test_it_goes_on_where_it_was_stopped(network: Network, tmp_path: Path) -> None:
    path, seen = tmp_path / "sensitivity.jsonl", []

    def stop_at_ten(fraction: float, message: str, **_: object) -> None:
        seen.append(message)
        if sum(m.startswith("Measuring") for m in seen) == 11:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure_cells(network, images(8), None, path, {"images": "a"}, stop_at_ten)
    half = read_table(path)
    assert half is not None
    assert half.progress(10) == 1.0
    lines = len(read_lines(path))
    table = measure_cells(network, images(8), None, path, {"images": "a"})
    assert len(read_lines(path)) == lines + len(settings(PROFILE)) - 10
    whole = measure_cells(network, images(8), None, tmp_path / "whole.jsonl", {"images": "a"})
    assert {k: c.kl for k, c in table.cells.items()} == {k: c.kl for k, c in whole.cells.items()}
    other = measure_cells(network, images(9)[1:], None, path, {"images": "b"})
    assert other.about == {"images": "b"}
    assert {k: c.kl for k, c in other.cells.items()} != {k: c.kl for k, c in table.cells.items()}
