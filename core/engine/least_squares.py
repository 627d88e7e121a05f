"""The best weights of one layer in closed form: those that make its output nearest to a target.

The layer is linear in its weights: with its input patches u and what its output still lacks, r = target - output, the
best change D of the weights and c of the bias solve normal equations, in float64, with A = Cov(u, u), B = Cov(u, r):

    min over D, c  Σ ‖D u + c - r‖² + ridge · mean(diag A) · ‖D‖²

The ridge pulls toward the weights as they are. It is the one of `RIDGES` that does best on images that were not used
for the solution, and where none does the weights stay, so that a layer with too few images is not harmed.

Channel Pruning for Accelerating Very Deep Neural Networks, He et al. 2017; with the surviving weights of a pruned layer
as the only unknowns, Optimal Brain Compression, Frantar & Alistarh 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.surgery import watch

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)  # shares of the mean of A's diagonal
ROWS = 50  # rows kept for each unknown of an output channel: more add time, not accuracy
OBSERVED = 4  # rows of a batch for each unknown, of what is only forecast
WIDEST = 4608  # inputs of a layer whose second moment is measured: 170 MB in float64
DOUBLE, SINGLE = 1e-12, 1e-6  # of sums of many products in float64 and in float32
STIFFER = 6  # dampings, each 100 times the last, before a layer stays as it is
STEPS = 100  # of conjugate gradients, for layers with zeros to keep


def patches(layer: nn.Conv2d | nn.Linear, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """What each output value is a sum over: (rows, groups, inputs of a group), rows being images × places.

    `rows` (k,) picks some of them, so that no more is copied.
    """
    if isinstance(layer, nn.Linear):
        found = x.reshape(-1, 1, x.shape[-1])
        return found if rows is None else found[rows]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    for axis in (0, 1):  # views: (n, c_in, h, w, kh, kw)
        dilation, kernel = layer.dilation[axis], layer.kernel_size[axis]
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, layer.stride[axis])[..., ::dilation]
    places = x.permute(0, 2, 3, 1, 4, 5)
    if rows is None:
        return places.reshape(-1, layer.groups, places[0, 0, 0].numel() // layer.groups)
    image, place = rows // (places.shape[1] * places.shape[2]), rows % (places.shape[1] * places.shape[2])
    found = places[image, place // places.shape[2], place % places.shape[2]]
    return found.reshape(len(rows), layer.groups, -1)


def values(layer: nn.Conv2d | nn.Linear, y: Tensor) -> Tensor:
    """A layer's output in the order of `patches`: (rows, groups, outputs of a group)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(-1, 1, y.shape[-1])
    return y.flatten(2).transpose(1, 2).reshape(-1, layer.groups, y.shape[1] // layer.groups)


def as_matrix(layer: nn.Conv2d | nn.Linear, weight: Tensor) -> Tensor:
    """(c_out, c_in / groups, …) → (groups, d, outputs of a group)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def as_weight(layer: nn.Conv2d | nn.Linear, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`."""
    return matrix.transpose(1, 2).reshape(layer.weight.shape)


@dataclass
class Normal:
    """Sums over rows of one half of the images; u is (groups, d), r is (groups, o)."""

    count: int
    u: Tensor
    r: Tensor
    uu: Tensor  # (groups, d, d)
    ur: Tensor  # (groups, d, o)

    @classmethod
    def of(cls, u: Tensor, r: Tensor, shifts: bool) -> Normal:
        """u (rows, groups, d) and r (rows, groups, o); `shifts` says whether there is a bias to take the means away."""
        u, r = u.double().transpose(0, 1), r.double().transpose(0, 1)
        return cls(u.shape[1], u.sum(1) * shifts, r.sum(1) * shifts, u.transpose(1, 2) @ u, u.transpose(1, 2) @ r)

    def __add__(self, other: Normal) -> Normal:
        return Normal(
            self.count + other.count, self.u + other.u, self.r + other.r, self.uu + other.uu, self.ur + other.ur
        )

    def centred(self) -> tuple[Tensor, Tensor]:
        """A = Cov(u, u) (groups, d, d) and B = Cov(u, r) (groups, d, o): the bias has taken the means away."""
        u, r = self.u / self.count, self.r / self.count
        return self.uu / self.count - u[:, :, None] * u[:, None], self.ur / self.count - u[:, :, None] * r[:, None]

    def shift(self, change: Tensor) -> Tensor:
        """The bias (groups, o) that goes best with `change`."""
        return self.r / self.count - (change * (self.u / self.count)[:, :, None]).sum(1)

    def error(self, change: Tensor) -> float:
        """Mean squared error with `change` (groups, d, o), less that without; below 0 is better. Best bias assumed."""
        a, b = self.centred()
        return float((change * (a @ change - 2 * b)).sum())


def observe(
    module: nn.Module, layers: Iterable[str], images: Sequence[Tensor], report: Callable[[float, str], None]
) -> dict[str, Normal]:
    """Sums over what each of these layers reads (r has no columns); layers in groups and very wide ones are left out.

    `images` are batches (n, c, h, w). A few rows from everywhere suffice, in float32: they are for a forecast, and
    `solve` pulls toward the weights as they are.
    """
    found: dict[str, Normal] = {}
    chance = torch.Generator().manual_seed(0)
    parts = {name: part for name in layers if _is_observed(part := module.get_submodule(name))}

    def look(name: str, layer: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor) -> None:
        rows = torch.randperm(y.numel() // len(layer.weight), generator=chance)
        u = patches(layer, x, rows[: OBSERVED * layer.weight[0].numel()])[:, 0]
        sums, products = (layer.bias is not None) * u.sum(0, dtype=torch.float64), (u.T @ u).double()
        nothing = products.new_zeros(1, len(products), 0)
        seen = Normal(len(u), sums[None], nothing[:, 0], products[None], nothing)
        found[name] = found[name] + seen if name in found else seen

    for number, batch in enumerate(images):
        report(number / len(images), "Measuring what each layer reads")
        watch(module, parts, batch, look)
    return found


def _is_observed(part: nn.Module) -> bool:
    whole = isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    return whole and part.weight[0].numel() <= WIDEST  # type: ignore[index,union-attr,operator]


def solve(normal: Normal, ridge: float, free: Tensor | None = None, precision: float = DOUBLE) -> Tensor:
    """The best change (groups, d, o). `free` (groups, d, o) is False where a weight must stay as it is.

    `precision` is that of the sums: what is left of inputs that hardly vary is no more than their rounding.
    """
    a, b = normal.centred()
    rounding = precision * (normal.uu / normal.count).diagonal(dim1=1, dim2=2).mean(
        1
    )  # inputs that never vary leave this
    damping = (ridge * a.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=torch.finfo(torch.float64).tiny) + rounding
    unit = torch.eye(a.shape[1], dtype=a.dtype)
    if free is not None:
        return _descend(a + damping[:, None, None] * unit, b, free)
    for _ in range(STIFFER):
        factor, failed = torch.linalg.cholesky_ex(a + damping[:, None, None] * unit)
        if not bool(failed.any()):
            return torch.cholesky_solve(b, factor)
        damping = 100 * damping  # rounding left less than nothing of some input
    return torch.zeros_like(b)


def _descend(a: Tensor, b: Tensor, free: Tensor) -> Tensor:
    """Conjugate gradients for A D = B on the free entries alone, every output channel with its own, all at once."""
    change, residual = torch.zeros_like(b), b * free
    scale = a.diagonal(dim1=1, dim2=2)[:, :, None]
    direction = residual / scale
    energy = (residual * direction).sum(1, keepdim=True)
    start = energy.clone()
    for _ in range(STEPS):
        if bool((energy <= 1e-10 * start).all()):
            break
        pushed = (a @ direction) * free
        step = energy / (direction * pushed).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        change, residual = change + step * direction, residual - step * pushed
        before, energy = energy, (residual * residual / scale).sum(1, keepdim=True)
        direction = residual / scale + energy / before.clamp(min=torch.finfo(torch.float64).tiny) * direction
    return change


def best_change(first: Normal, second: Normal, free: Tensor | None = None) -> Tensor:
    """The change (groups, d, o) by the ridge that does best on the half it was not solved on."""
    trials = {
        ridge: second.error(solve(first, ridge, free)) + first.error(solve(second, ridge, free)) for ridge in RIDGES
    }
    ridge, both = min(trials, key=lambda r: trials[r]), first + second
    return solve(both, ridge, free) if trials[ridge] < 0 else torch.zeros_like(both.ur)
