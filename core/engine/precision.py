"""What training runs on: a GPU where there is one, and bfloat16 where the machine multiplies it faster than float32.

Weights, optimizer and loss stay float32 (Mixed Precision Training, Micikevicius et al. 2018); bfloat16 has float32's
range, so that no loss scaling is needed. Images are laid out channels last, as fast convolutions want them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn


@cache
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def has_fast_bfloat16() -> bool:
    """Whether bfloat16 has instructions of its own here: emulated, it would be slower than float32."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))


class Mixed(nn.Module):
    """`module`, wherever it is, with its products in bfloat16 where that is faster; float32 in, float32 out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        place = next((p.device for p in self.module.parameters()), device())
        x = x.to(place, memory_format=torch.channels_last)
        with torch.autocast(place.type, torch.bfloat16, enabled=place == device() and has_fast_bfloat16()):
            return self.module(x).float()  # type: ignore[no-any-return]


@contextmanager
def placed(*modules: nn.Module | None) -> Iterator[None]:
    """The modules where training runs, laid out for it; afterwards back as everything else expects them."""
    present = [module for module in modules if module is not None]
    for module in present:
        module.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for module in present:
            module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
