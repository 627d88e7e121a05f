"""Training on the labels as torch-pruning's examples on CIFAR-10 do, for benchmarks.peers: SGD, shifts and mirrors, and
a rate that falls by a cosine; in bfloat16 where our own training is."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.cards import ModelCard
from core.engine.batches import batches
from core.engine.data import Data
from core.engine.precision import Mixed, device
from core.engine.schedule import Plan

RATE, DECAY = 0.01, 5e-4


def train_on_labels(net: nn.Module, data: Data, card: ModelCard, seconds: float) -> None:
    """In place, for so many seconds of the processor."""
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    plan, mixed = Plan(1, RATE, shift=4, flip=data.card.flip), Mixed(net)
    began, epoch, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        for batch in batches(data.train, card, plan, epoch, 0):
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * min(1.0, spent / seconds)))
            optimizer.zero_grad()
            F.cross_entropy(mixed(batch.x), batch.y.to(device())).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (spent := time.process_time() - began) >= seconds:
                break
        epoch += 1
