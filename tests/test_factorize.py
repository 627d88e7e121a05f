"""factorize: errors equal the discarded singular values, Tucker-2 equals tensorly's, full rank is exact."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images
from core.engine.evbmf import free_energy, rank_above_noise
from core.engine.low_rank import (
    bayesian_rank,
    split_conv_cp,
    split_conv_tucker,
    split_cp,
    split_linear,
    split_matrix,
    split_spatial,
    split_tucker,
)
from core.engine.techniques.factorize import NOISE, apply, measure_moments
from core.options import Factorize

NOTHING = Images(np.zeros((0, 12, 10, 3), np.uint8), None)


def context(images: Images = NOTHING) -> Context:
    return Context(ModelCard("net", "net", (3, 12, 10), ("a", "b")), NOTHING, images, NOTHING, False, None)


def pictures(count: int = 40) -> Images:
    """Smooth pictures: neighbouring pixels and channels go together, as in photographs."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(noise, (12, 10), mode="bilinear")
    return Images((smooth.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8), None)


def conv(**about: object) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(6, 8, **({"kernel_size": (3, 5), "padding": (1, 2)} | about))


def test_svd_error_is_the_discarded_singular_values() -> None:
    matrix = torch.randn(9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, right = split_matrix(matrix, 4)
    discarded = np.linalg.svd(matrix.numpy(), compute_uv=False)[4:]
    assert float(torch.linalg.norm(matrix - left @ right)) == pytest.approx(float(np.linalg.norm(discarded)))


def test_linear_error_is_the_discarded_singular_values() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 10)
    parts = split_linear(layer, 0.3)  # rank 3
    product = (parts[1].weight.double() @ parts[0].weight.double()).detach().numpy()
    weight = layer.weight.detach().double().numpy()
    discarded = np.linalg.svd(weight, compute_uv=False)[3:]
    assert np.linalg.norm(weight - product) == pytest.approx(np.linalg.norm(discarded), rel=1e-6)
    assert torch.equal(parts[1].bias, layer.bias)
    assert parts[0].bias is None


def test_weighted_svd_error_in_the_output_is_the_discarded_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 6, dtype=torch.float64, generator=generator) @ torch.randn(
        6, 6, dtype=torch.float64, generator=generator
    )
    matrix = torch.randn(6, 7, dtype=torch.float64, generator=generator)
    left, right = split_matrix(matrix, 2, rows.T @ rows)
    error = float(torch.linalg.norm(rows @ matrix - rows @ left @ right))
    discarded = np.linalg.svd((rows @ matrix).numpy(), compute_uv=False)[2:]
    assert error == pytest.approx(float(np.linalg.norm(discarded)), rel=1e-6)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"stride": (2, 1)},
        {"stride": (1, 2), "bias": False},
        {"dilation": (2, 1)},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"kernel_size": 1, "padding": 0},
    ],
    ids=str,
)
def test_full_rank_convolutions_are_exact(about: dict[str, object]) -> None:
    layer = conv(**about)
    x = torch.randn(2, 6, 12, 10)
    for parts in (split_spatial(layer, 1.0), split_conv_tucker(layer, 1.0), split_conv_cp(layer, 1.0)):
        assert torch.allclose(parts(x), layer(x), atol=1e-4 if len(parts) == 4 else 1e-5)
        assert (parts[-1].bias is None) == (layer.bias is None)


def test_spatial_svd_error_is_the_discarded_singular_values() -> None:
    layer = conv()
    parts = split_spatial(layer, 0.5)  # full rank min(6 · 3, 8 · 5) = 18, kept 9
    assert [tuple(p.weight.shape) for p in parts] == [(9, 6, 3, 1), (8, 9, 1, 5)]
    product = torch.einsum("rih,orw->oihw", parts[0].weight[..., 0].double(), parts[1].weight[:, :, 0].double())
    weight = layer.weight.detach().double()
    matrix = weight.permute(1, 2, 0, 3).reshape(18, 40).numpy()
    discarded = np.linalg.svd(matrix, compute_uv=False)[9:]
    assert float((weight - product).detach().norm()) == pytest.approx(float(np.linalg.norm(discarded)), rel=1e-6)


def test_tucker_equals_tensorly() -> None:
    weight = torch.randn(8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs, core, inputs = split_tucker(weight, 3, 4)
    ours = torch.einsum("pqhw,op,iq->oihw", core, outputs, inputs).numpy()
    (their_core, factors), _ = partial_tucker(weight.numpy(), rank=[4, 3], modes=[0, 1], n_iter_max=2, init="svd")
    theirs = tensorly.tenalg.multi_mode_dot(their_core, factors, modes=[0, 1])
    error, reference = np.linalg.norm(weight.numpy() - ours), np.linalg.norm(weight.numpy() - theirs)
    assert core.shape == (4, 3, 3, 3)
    assert error == pytest.approx(reference, rel=2e-3)
    assert torch.allclose(outputs.T @ outputs, torch.eye(4, dtype=torch.float64), atol=1e-10)


def planted(*sides: int, rank: int, seed: int = 0) -> torch.Tensor:
    """A sum of so many products of random columns."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randn(side, rank, dtype=torch.float64, generator=generator) for side in sides]
    return torch.einsum("az,bz,cz,dz->abcd", *columns)


def test_cp_recovers_the_terms_that_were_planted() -> None:
    tensor = planted(8, 6, 3, 3, rank=3)
    sides = split_cp(tensor, 3)
    assert [tuple(side.shape) for side in sides] == [(8, 3), (6, 3), (3, 3), (3, 3)]
    assert float((torch.einsum("az,bz,cz,dz->abcd", *sides) - tensor).norm()) < 1e-3 * float(tensor.norm())
    norms = torch.stack([side.norm(dim=0) for side in sides])
    assert torch.allclose(norms, norms[:1].expand_as(norms))  # each term's scale is shared out evenly


def test_cp_is_as_near_as_tensorly() -> None:
    tensor = planted(8, 6, 3, 3, rank=5) + 0.5 * torch.randn(
        8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9)
    )
    theirs = tensorly.cp_to_tensor(parafac(tensor.numpy(), 3, n_iter_max=60, init="svd", random_state=0))
    error = float((torch.einsum("az,bz,cz,dz->abcd", *split_cp(tensor, 3)) - tensor).norm())
    assert error == pytest.approx(np.linalg.norm(tensor.numpy() - theirs), rel=0.05)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 64, 5), (40, 300, 12), (200, 30, 3), (64, 576, 20)])
def test_evbmf_finds_the_rank_that_was_planted_under_noise(rows: int, columns: int, rank: int) -> None:
    """Singular values of the signal are at least twice the largest of the noise, which is √rows + √columns."""
    rng = np.random.default_rng(rows)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in (rows, columns))
    sizes = np.linspace(2, 6, rank) * (np.sqrt(rows) + np.sqrt(columns))
    matrix = left * sizes @ right.T + rng.standard_normal((rows, columns))
    assert rank_above_noise(matrix) == rank
    assert rank_above_noise(1e-6 * matrix.T) == rank  # neither its scale nor its side matter
    assert rank_above_noise(rng.standard_normal((rows, columns))) == 0


def test_evbmf_of_a_matrix_without_noise_or_without_values() -> None:
    rng = np.random.default_rng(1)
    assert rank_above_noise(rng.standard_normal((30, 4)) @ rng.standard_normal((4, 50))) == 4
    assert rank_above_noise(np.zeros((5, 7))) == 0


def test_the_noise_that_is_found_has_the_least_free_energy() -> None:
    """The search over one dimension against a fine grid of it: no rank on the grid with less energy is another."""
    rng = np.random.default_rng(2)
    matrix = 3 * rng.standard_normal((48, 6)) @ rng.standard_normal((6, 90)) + 2 * rng.standard_normal((48, 90))
    squares = np.square(np.linalg.svd(matrix, compute_uv=False))
    ratio = 48 / 90
    slope = 2.5129 * np.sqrt(ratio)
    bound = (1 + slope) * (1 + ratio / slope)
    grid = np.linspace(np.log(squares[-1] / 90 / bound), np.log(squares.mean() / 90), 2000)
    best = grid[int(np.argmin([free_energy(v, squares, ratio, bound, 90) for v in grid]))]
    assert np.exp(best) == pytest.approx(4, rel=0.15)  # the variance that was planted
    assert rank_above_noise(matrix) == int((squares > 90 * np.exp(best) * bound).sum()) == 6


@pytest.mark.parametrize(("rows", "columns", "terms"), [(23, 26, 10), (45, 63, 10), (113, 56, 17), (37, 37, 14)])
def test_of_several_valleys_of_the_energy_the_deepest_decides(rows: int, columns: int, terms: int) -> None:
    """Terms of falling size, of which the last ones drown: a search from one side ends in a valley that is not it."""
    rng = np.random.default_rng(terms)
    small, large = sorted((rows, columns))
    sizes = np.linspace(2.5, 0.2, terms)
    matrix = sizes * rng.standard_normal((rows, terms)) @ rng.standard_normal((terms, columns))
    matrix += rng.standard_normal(matrix.shape)
    squares = np.square(np.linalg.svd(matrix, compute_uv=False))
    slope = 2.5129 * np.sqrt(small / large)
    bound = (1 + slope) * (1 + small / large / slope)
    grid = np.linspace(np.log(squares[-1] / large / bound), np.log(squares.mean() / large), 4000)
    best = grid[int(np.argmin([free_energy(v, squares, small / large, bound, large) for v in grid]))]
    assert rank_above_noise(matrix) == int((squares > large * np.exp(best) * bound).sum())


def test_evbmf_gives_every_layer_its_own_rank_and_says_where_there_is_none() -> None:
    model = residual_net()
    with torch.no_grad():
        left, right = torch.linalg.qr(torch.randn(48, 4))[0], torch.linalg.qr(torch.randn(48, 4))[0]
        matrix = 60 * left @ right.T + torch.randn(48, 48)  # (c_in · kh, c_out · kw)
        model.conv.weight.copy_(matrix.reshape(16, 3, 16, 3).permute(2, 0, 1, 3))  # type: ignore[operator, union-attr]
    share = bayesian_rank(model.conv, "spatial_svd")  # type: ignore[arg-type]
    assert share == 4 / 48
    outcome = apply(model, Factorize(0.5, ranks="evbmf", repair=False), {"head": 0.25}, context())
    assert outcome.model.conv[0].out_channels == 4
    assert outcome.model.head[0].out_features == 4  # a rank of its own comes first
    assert {s.reason for s in outcome.skipped if s.layer == "stem.0"} == {NOISE}


def test_evbmf_gives_tucker_two_ranks_and_leaves_what_is_switched_off() -> None:
    model = residual_net()
    with torch.no_grad():
        inputs, outputs = torch.linalg.qr(torch.randn(16, 2))[0], torch.linalg.qr(torch.randn(16, 3))[0]
        core = 40 * torch.randn(3, 2, 3, 3)
        weight = torch.einsum("pqhw,op,iq->oihw", core, outputs, inputs) + torch.randn(16, 16, 3, 3)
        model.conv.weight.copy_(weight)  # type: ignore[operator, union-attr]
    options = Factorize(0.5, "tucker2", ranks="evbmf", repair=False)
    assert bayesian_rank(model.conv, "tucker2") == (2 / 16, 3 / 16)  # type: ignore[arg-type]
    outcome = apply(model, options, {"stem": 1.0, "head": 1.0}, context())
    assert [part.out_channels for part in outcome.model.conv] == [2, 3, 16]
    assert isinstance(outcome.model.stem[0], nn.Conv2d)


def residual_net() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.group = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.unused = nn.Conv2d(16, 16, 3)
            self.head = nn.Linear(16, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(self.group(self.depth(x + self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("method", ["spatial_svd", "tucker2", "cp"])
def test_layers_are_replaced_in_place_with_names_that_follow(method: str) -> None:
    model = residual_net()
    before = sum(p.numel() for p in model.parameters())
    outcome = apply(model, Factorize(0.25, method), {"head": 1.0}, context(pictures()))
    names = {n for n, m in outcome.model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {"conv.0", "conv.1", "stem.0.0", "stem.0.1"} <= names
    assert ("conv.2" in names) == (method != "spatial_svd")
    assert ("conv.3" in names) == (method == "cp")
    reasons = {skip.layer: skip.reason for skip in outcome.skipped}
    assert reasons.keys() == {"depth", "group", "unused"}  # head has a rank of its own, 1
    assert "depthwise" in reasons["depth"]
    assert "4 groups" in reasons["group"]
    assert "never calls" in reasons["unused"]
    assert sum(p.numel() for p in outcome.model.parameters()) < before
    assert outcome.model(torch.randn(2, 3, 12, 10)).shape == (2, 20)


def test_what_would_be_larger_is_refused_with_the_numbers() -> None:
    model = residual_net()
    outcome = apply(model, Factorize(1.0), {"conv": 0.9}, context(pictures()))
    (skip,) = outcome.skipped
    assert skip.layer == "conv"
    assert "4,128" in skip.reason  # rank round(0.9 · 48) = 43: 43 · (16 · 3 + 16 · 3) parameters
    assert "2,304" in skip.reason
    assert isinstance(model.conv, nn.Conv2d)


def test_weighting_and_repair_lower_the_error_of_the_output_on_other_images() -> None:
    images, errors = pictures(200), []
    calibration, fresh = images.take(slice(0, 100)), images.take(slice(100, 200))
    x = torch.from_numpy(fresh.x).permute(0, 3, 1, 2).float() / 255
    for weighted, repair in ((False, False), (True, False), (True, True)):
        model, original = residual_net(), residual_net()
        options = Factorize(1.0, weighted=weighted, repair=repair)
        apply(model, options, {"conv": 0.15, "head": 0.2}, context(calibration))
        with torch.no_grad():
            errors.append(float((model(x) - original(x)).norm()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_moments_are_those_of_the_padded_input_columns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    images = pictures(2)
    moment = measure_moments(model, {"0": model[0]}, context(images))["0"].numpy()
    x = np.pad(images.x.transpose(0, 3, 1, 2) / 255, ((0, 0), (0, 0), (1, 1), (0, 0)))
    rows = [x[n, :, top : top + 3, left].ravel() for n in range(2) for top in range(12) for left in range(10)]
    np.testing.assert_allclose(moment, np.array(rows).T @ np.array(rows) / len(rows), rtol=1e-4, atol=1e-6)


def test_the_answer_is_split_only_by_a_rank_of_its_own() -> None:
    model = residual_net()
    outcome = apply(model, Factorize(0.3, repair=False), {}, context())
    assert [s.layer for s in outcome.skipped if "answer" in s.reason] == ["head"]
    assert isinstance(model.head, nn.Linear)
    apply(model, Factorize(1.0, repair=False), {"head": 0.3}, context())
    assert isinstance(model.head, nn.Sequential)
