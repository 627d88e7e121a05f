"""A layer as two to four thinner ones: low-rank factors of its weights, and the layers that hold them.

    linear       c_in → r, r → c_out                                           SVD
    spatial_svd  c_in → r (kh × 1), r → c_out (1 × kw)                         Jaderberg et al. 2014, scheme 2
    tucker2      c_in → r_in (1 × 1), r_in → r_out (kh × kw), r_out → c_out (1 × 1)   Kim et al. 2016: HOSVD, HOOI
    cp           c_in → r (1 × 1), r (kh × 1) and r (1 × kw) by themselves, r → c_out (1 × 1)   Lebedev et al. 2015: ALS

CP is for teaching: its best approximation of some rank need not exist, so that terms grow against each other, and its
four thin layers are slow to run.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.engine.evbmf import rank_above_noise
from core.ranks import Rank, cp_rank, linear_rank, spatial_rank, tucker_ranks

SWEEPS = 2  # of higher-order orthogonal iteration
CP_SWEEPS = 60  # of alternating least squares
FLOOR = 1e-6  # of the mean eigenvalue: directions that the images never use are not divided by zero
RIDGE = 1e-9  # of the mean of the normal equations' diagonal, where terms grow against each other


def split_matrix(matrix: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(n, m) float64 → (n, rank) and (rank, m) whose product is nearest to it, each with half of the scale.

    Nearest for inputs u of second moment E[u uᵀ] = `moment` (n, n), or in the Frobenius norm.
    """
    if moment is None:
        root = inverse = None
    else:
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp(min=max(FLOOR * float(values.mean()), torch.finfo(torch.float64).tiny)).sqrt()
        root, inverse = vectors * values @ vectors.T, vectors / values @ vectors.T
    u, s, v = torch.linalg.svd(matrix if root is None else root @ matrix, full_matrices=False)
    half = s[:rank].sqrt()
    left, right = u[:, :rank] * half, half[:, None] * v[:rank]
    return left if inverse is None else inverse @ left, right


def split_tucker(weight: Tensor, r_in: int, r_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """(c_out, c_in, kh, kw) → outputs (c_out, r_out), core (r_out, r_in, kh, kw), inputs (c_in, r_in), orthonormal."""
    inputs = _leading(weight.movedim(1, 0), r_in)
    outputs = _leading(weight, r_out)
    for _ in range(SWEEPS):
        outputs = _leading(torch.einsum("oihw,ir->orhw", weight, inputs), r_out)
        inputs = _leading(torch.einsum("oihw,or->irhw", weight, outputs), r_in)
    return outputs, torch.einsum("oihw,op,iq->pqhw", weight, outputs, inputs), inputs


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of the unfolding along axis 0."""
    vectors: Tensor = torch.linalg.svd(tensor.flatten(1), full_matrices=False)[0]
    return vectors[:, :rank]


def split_cp(tensor: Tensor, rank: int) -> list[Tensor]:
    """(a, b, …) float64 → (a, rank), (b, rank), …: the tensor is about the sum over r of the products of columns r.

    Alternating least squares from the leading singular vectors, with columns beyond them drawn from a fixed seed.
    """
    random = torch.Generator().manual_seed(0)
    sides = []
    for axis, size in enumerate(tensor.shape):
        vectors = _leading(tensor.movedim(axis, 0), rank)
        fill = torch.randn(size, rank - vectors.shape[1], generator=random, dtype=tensor.dtype)
        sides.append(torch.cat([vectors, fill], 1))
    for _ in range(CP_SWEEPS):
        for axis in range(tensor.ndim):
            sides[axis] = _solve_side(tensor, sides, axis)
            if axis < tensor.ndim - 1:  # the scale of a term is in its last column
                sides[axis] = sides[axis] / sides[axis].norm(dim=0).clamp(min=torch.finfo(tensor.dtype).tiny)
    scale = sides[-1].norm(dim=0)
    share = scale ** (1 / tensor.ndim)
    return [side * share for side in sides[:-1]] + [sides[-1] / scale.clamp(min=1e-300) * share]


def _solve_side(tensor: Tensor, sides: Sequence[Tensor], axis: int) -> Tensor:
    """The best (size, rank) along one axis, given the others."""
    axes = string.ascii_lowercase[: tensor.ndim]
    others = [i for i in range(tensor.ndim) if i != axis]
    names = ",".join(f"{axes[i]}z" for i in others)
    products = torch.einsum(f"{axes},{names}->{axes[axis]}z", tensor, *[sides[i] for i in others])
    normal = torch.ones(products.shape[1], products.shape[1], dtype=tensor.dtype)
    for i in others:
        normal = normal * (sides[i].T @ sides[i])
    normal = normal + RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=tensor.dtype)
    best: Tensor = torch.linalg.solve(normal, products.T).T
    return best


def _with_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)  # type: ignore[arg-type,operator]
        if bias is not None:
            layer.bias.copy_(bias)  # type: ignore[arg-type,operator]
    return layer


def split_linear(layer: nn.Linear, rank: float, moment: Tensor | None = None) -> nn.Sequential:
    """`moment` is E[x xᵀ] of the layer's input, (c_in, c_in)."""
    r = linear_rank(rank, layer.in_features, layer.out_features)
    first, second = split_matrix(layer.weight.detach().double().T, r, moment)
    return nn.Sequential(
        _with_weight(nn.Linear(layer.in_features, r, bias=False), first.T),
        _with_weight(nn.Linear(r, layer.out_features, bias=layer.bias is not None), second.T, layer.bias),
    )


def _part(
    layer: nn.Conv2d, c_in: int, c_out: int, axes: tuple[bool, bool], bias: bool = False, groups: int = 1
) -> nn.Conv2d:
    """A convolution with the layer's kernel, stride, padding and dilation along the chosen axes, 1 elsewhere."""

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
        return values[0] if axes[0] else neutral, values[1] if axes[1] else neutral

    padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
    return nn.Conv2d(
        c_in,
        c_out,
        along(layer.kernel_size, 1),
        along(layer.stride, 1),
        padding,
        along(layer.dilation, 1),
        groups,
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def split_spatial(layer: nn.Conv2d, rank: float, moment: Tensor | None = None) -> nn.Sequential:
    """`moment` is E[u uᵀ] of the layer's (kh × 1) input columns, channel by channel: (c_in · kh, c_in · kh)."""
    c_out, c_in, kh, kw = layer.weight.shape
    r = spatial_rank(rank, (kh, kw), c_in, c_out)
    matrix = layer.weight.detach().double().permute(1, 2, 0, 3).reshape(c_in * kh, c_out * kw)
    first, second = split_matrix(matrix, r, moment)
    return nn.Sequential(
        _with_weight(_part(layer, c_in, r, (True, False)), first.T.reshape(r, c_in, kh, 1)),
        _with_weight(
            _part(layer, r, c_out, (False, True), layer.bias is not None),
            second.reshape(r, c_out, 1, kw).transpose(0, 1),
            layer.bias,
        ),
    )


def split_conv_tucker(layer: nn.Conv2d, rank: Rank) -> nn.Sequential:
    c_out, c_in, kh, kw = layer.weight.shape
    r_in, r_out = tucker_ranks(rank, (kh, kw), c_in, c_out)
    outputs, core, inputs = split_tucker(layer.weight.detach().double(), r_in, r_out)
    return nn.Sequential(
        _with_weight(nn.Conv2d(c_in, r_in, 1, bias=False), inputs.T[:, :, None, None]),
        _with_weight(_part(layer, r_in, r_out, (True, True)), core),
        _with_weight(nn.Conv2d(r_out, c_out, 1, bias=layer.bias is not None), outputs[:, :, None, None], layer.bias),
    )


def split_conv_cp(layer: nn.Conv2d, rank: float) -> nn.Sequential:
    c_out, c_in, kh, kw = layer.weight.shape
    r = cp_rank(rank, (kh, kw), c_in, c_out)
    outputs, inputs, rows, columns = split_cp(layer.weight.detach().double(), r)
    return nn.Sequential(
        _with_weight(nn.Conv2d(c_in, r, 1, bias=False), inputs.T[:, :, None, None]),
        _with_weight(_part(layer, r, r, (True, False), groups=r), rows.T[:, None, :, None]),
        _with_weight(_part(layer, r, r, (False, True), groups=r), columns.T[:, None, None, :]),
        _with_weight(nn.Conv2d(r, c_out, 1, bias=layer.bias is not None), outputs[:, :, None, None], layer.bias),
    )


def bayesian_rank(layer: nn.Linear | nn.Conv2d, method: str) -> Rank:
    """The share of the full rank that EVBMF finds above noise in the matrix that the method splits; 0 where none is.

    tucker2 has one for its inputs and one for its outputs, and cp takes the larger of these ranks.
    """
    weight = layer.weight.detach().double()
    if method == "spatial_svd" or isinstance(layer, nn.Linear):
        matrix = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1) if weight.ndim == 4 else weight
        return rank_above_noise(matrix.cpu().numpy()) / min(matrix.shape)
    sides = [weight.movedim(axis, 0).flatten(1) for axis in (1, 0)]
    found = [rank_above_noise(side.cpu().numpy()) for side in sides]
    if method == "cp":
        return max(found) / (min(weight.shape[:2]) * weight[0, 0].numel())
    into, out = (rank / min(side.shape) for rank, side in zip(found, sides, strict=True))
    return into, out


def split(layer: nn.Module, method: str, rank: Rank, moment: Tensor | None) -> nn.Sequential:
    """The factors of a Linear or ungrouped Conv2d, in execution order, on its device and in its type."""
    if isinstance(rank, tuple):
        assert isinstance(layer, nn.Conv2d)
        factors = split_conv_tucker(layer, rank)
    elif isinstance(layer, nn.Linear):
        factors = split_linear(layer, rank, moment)
    elif method == "spatial_svd":
        factors = split_spatial(layer, rank, moment)  # type: ignore[arg-type]
    else:
        factors = (split_conv_cp if method == "cp" else split_conv_tucker)(layer, rank)  # type: ignore[arg-type,operator]
    weight = next(layer.parameters())
    return factors.to(weight.device, weight.dtype).train(layer.training)
