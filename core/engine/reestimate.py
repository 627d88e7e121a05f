"""BatchNorm statistics measured again after a network has changed, and kept only where its answers gain by it.

Pruned channels shift the mean and variance of everything behind them; a forward pass over a few hundred unlabelled
images repairs that (EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, Li et al. 2020).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.surgery import evaluating

BATCH = 128
JUDGED = 1000  # validation images that decide


@torch.no_grad()
def answers(model: nn.Module, images: Images, context: Context) -> torch.Tensor:
    """The class with the highest logit for each image, (n,)."""
    with evaluating(model):
        parts = [model(to_tensor(images.x[i : i + BATCH], context.card)) for i in range(0, len(images), BATCH)]
    return torch.cat(parts).argmax(1)


@torch.no_grad()
def measure_batchnorm(model: nn.Module, images: Images, context: Context) -> bool:
    """Replace the running statistics by plain averages over all `images`. False where there is none to replace."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or len(images) < 2:
        return False
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        for part in np.array_split(np.arange(len(images)), math.ceil(len(images) / BATCH)):
            model(to_tensor(images.x[part], context.card))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return True


def reestimate(model: nn.Module, reference: nn.Module, context: Context) -> str:
    """Measure BatchNorm again on the calibration images, in place, if the model then answers more like `reference`.

    Returns why the statistics stay as they were, as a sentence; "" when they were replaced or there are none.
    """
    count = len(context.validation)
    judged = context.validation.take(np.linspace(0, count - 1, min(JUDGED, count)).round().astype(np.int64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected, old = answers(reference, judged, context), answers(model, judged, context)
    if not measure_batchnorm(model, context.calibration, context):
        return ""
    agreed, reached = ((found == expected).double().mean().item() for found in (old, answers(model, judged, context)))
    if reached > agreed:
        return ""
    model.load_state_dict(before)
    return f"BatchNorm kept its statistics: measured again, agreement would go from {agreed:.1%} to {reached:.1%}."
