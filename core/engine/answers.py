"""A teacher's answers to the training images, asked each time or kept for every version of an image.

With stored views the teacher runs in the first epochs only, and student and teacher still see the very same images:
Knowledge Distillation: A Good Teacher Is Patient and Consistent, Beyer et al. 2022; A Fast Knowledge Distillation
Framework for Visual Recognition, Shen & Xing 2022.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.engine.batches import Batch
from core.engine.precision import Mixed

EMPTY = np.nan  # the first answer of an image that was not asked about


class Asked:
    """The teacher's logits (n, classes) for a batch, computed each time."""

    def __init__(self, teacher: nn.Module) -> None:
        self.quick = Mixed(teacher)

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.quick(batch.x)
            return logits


class Kept:
    """The same, computed once for every version of an image. On disk where there is a path, so a resumed run has them.

    Images as they are (view -1) are asked about each time.
    """

    def __init__(self, teacher: nn.Module, images: int, views: int, path: Path | None) -> None:
        self.ask, self.size, self.path = Asked(teacher), (views, images), path
        self.known: np.ndarray | None = None  # (views, images, classes)

    def __call__(self, batch: Batch) -> Tensor:
        if batch.view < 0:
            return self.ask(batch)
        index = batch.index.numpy()
        if self.known is None and self.path is not None and self.path.exists():
            self.known = np.lib.format.open_memmap(self.path, "r+")
        if self.known is not None and not np.isnan(self.known[batch.view, index, 0]).any():
            return torch.from_numpy(self.known[batch.view, index]).to(batch.y.device)
        answers = self.ask(batch)
        if self.known is None:
            self.known = self._empty(answers.shape[1])
        self.known[batch.view, index] = answers.cpu().numpy()
        return answers

    def _empty(self, classes: int) -> np.ndarray:
        shape = (*self.size, classes)
        made = (
            np.empty(shape, np.float32)
            if self.path is None
            else np.lib.format.open_memmap(self.path, "w+", np.float32, shape)
        )
        made[:] = EMPTY
        return made
