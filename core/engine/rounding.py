"""Weights on a grid of few levels, rounded so that the layer's output changes least rather than the weights.

One input after another is rounded, and the weights of the inputs that are still free make up for the error, by the
inverse of the inputs' covariance; on coarse grids each weight is then rounded once more, given all the others, while
that helps.

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, Frantar et al. 2023; the second part
is the cyclic descent of QuantEase, Behdin et al. 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of the covariance's diagonal
SHRINKS = torch.linspace(1.0, 0.35, 40, dtype=torch.float64)  # of the widest grid, which is tried first
FAINT = 1e-4  # of the widest grid: finer ones would be of empty outputs, and need huge codes for biases
STIFFER = 8  # dampings, each 100 times the last, before each input is rounded on its own
BLOCK = 128  # inputs that are rounded before the others hear of it
FINE = 7  # bits from which rounding in order leaves next to nothing to gain
SWEEPS = 8  # of cyclic descent at most


def limits(bits: int) -> tuple[int, int]:
    """The lowest and highest code; -128 is left out, since two products of it overflow the 16 bits of some kernels.

    >>> limits(4), limits(8)
    ((-8, 7), (-127, 127))
    """
    return max(-(2 ** (bits - 1)), -127), 2 ** (bits - 1) - 1


def find_scales(weight: Tensor, importance: Tensor, bits: int) -> Tensor:
    """(groups, d, o) and (groups, d) → (groups, 1, o): the step of each output's grid with the least weighted error."""
    low, high = limits(bits)
    widest = weight.abs().amax(1, keepdim=True)
    widest = widest.clamp(min=max(FAINT * float(widest.max()), 1e-12)) / high
    best, scales = torch.full_like(widest, torch.inf), widest
    for shrink in SHRINKS:
        scale = widest * shrink
        rounded = (weight / scale).round().clamp(low, high) * scale
        error = ((weight - rounded).square() * importance[:, :, None]).sum(1, keepdim=True)
        scales, best = torch.where(error < best, scale, scales), torch.minimum(error, best)
    return scales


def round_weights(weight: Tensor, covariance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Weight (groups, d, o) and covariance (groups, d, d), float64 → codes (groups, d, o) and scales (groups, 1, o).

    The rounded weight is codes × scales. What is exactly zero stays zero.
    """
    damping = DAMPING * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    covariance = covariance + damping[:, None, None] * torch.eye(covariance.shape[1], dtype=covariance.dtype)
    scales = find_scales(weight, covariance.diagonal(dim1=1, dim2=2).clamp(min=0), bits)
    codes = _in_order(weight, covariance, scales, bits)
    return (codes if bits >= FINE else _descend(weight, codes, covariance, scales, bits)), scales


def _in_order(weight: Tensor, covariance: Tensor, scales: Tensor, bits: int) -> Tensor:
    """GPTQ's codes, the inputs with the largest variance first; each group of a layer on its own, outputs at once."""
    codes = torch.zeros_like(weight)
    for group, matrix in enumerate(weight):
        order = covariance[group].diagonal().argsort(descending=True, stable=True)
        factor = _factor(covariance[group][order][:, order])
        left, scale = matrix[order].clone(), scales[group, 0]  # (d, o), (o,)
        for start in range(0, len(left), BLOCK):  # what a block changes in the rows behind it is told them at its end
            end = min(start + BLOCK, len(left))
            errors = torch.zeros_like(left[start:end])
            for place in range(start, end):
                kept = matrix[order[place]] != 0
                code = (left[place] / scale).round().clamp(*limits(bits)) * kept
                codes[group, order[place]] = code
                errors[place - start] = (left[place] - code * scale) / factor[place, place]
                left[place + 1 : end] -= factor[place, place + 1 : end, None] * errors[place - start]
            left[end:] -= factor[start:end, end:].T @ errors
    return codes


def _factor(covariance: Tensor) -> Tensor:
    """Of the inverse: upper (d, d), its square. Damped until there is one: of inputs that hardly vary, rounding may
    leave less than nothing, and then there is nothing to make up for."""
    unit = torch.eye(len(covariance), dtype=covariance.dtype)
    damping = 0.0
    for _ in range(STIFFER):
        lower, failed = torch.linalg.cholesky_ex(covariance + damping * unit)
        factor: Tensor
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return factor
        damping = max(100 * damping, DAMPING * float(covariance.diagonal().mean().clamp(min=1e-12)))
    return unit


def _descend(weight: Tensor, codes: Tensor, covariance: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Each weight in turn takes the code that is best given all the others, until nothing changes."""
    codes = codes.clone()
    gradient = covariance @ (codes * scales - weight)  # (groups, d, o), half of the error's slope
    for _ in range(SWEEPS):
        before = codes.clone()
        for column in range(weight.shape[1]):
            wanted = codes[:, column] - gradient[:, column] / (covariance[:, column, column, None] * scales[:, 0])
            code = wanted.round().clamp(*limits(bits)) * (weight[:, column] != 0)
            gradient += covariance[:, :, column, None] * ((code - codes[:, column]) * scales[:, 0])[:, None]
            codes[:, column] = code
        if torch.equal(before, codes):
            break
    return codes
