"""Small networks with every way that channels can be tied together, built from a list of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCKS = (
    "plain",
    "residual",
    "project",
    "concat",
    "joined_residual",
    "depthwise",
    "squeeze",
    "preact",
    "twice",
    "pool",
)
HEADS = ("mean", "flatten", "mlp")


def conv(c_in: int, c_out: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=bias)


class Block(nn.Module):
    """(n, c, h, w) → (n, self.width, h', w')."""

    def __init__(self, kind: str, c: int, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, c
        if kind in ("plain", "project"):
            self.a, self.norm, self.width = conv(c, width, bias=False), nn.BatchNorm2d(width), width
        if kind == "project":
            self.shortcut, self.act = conv(c, width, 1), nn.PReLU(width)
        if kind == "residual":
            self.a, self.b, self.norm = conv(c, width), conv(width, c), nn.BatchNorm2d(c)
        if kind in ("concat", "preact"):
            self.a, self.b, self.width = conv(c, width), conv(c, width + 1, 1), 2 * width + 1
        if kind == "preact":
            self.norm, self.c, self.width = nn.BatchNorm2d(2 * width + 1), conv(2 * width + 1, width), width
        if kind == "twice":
            self.a, self.width = conv(c, width), c + 2 * width
        if kind == "joined_residual":
            self.a, self.b, self.c, self.d = (conv(c, width) for _ in range(4))
            self.width = 2 * width
        if kind == "depthwise":
            self.a, self.b, self.c = conv(c, 2 * width, 1), conv(2 * width, 2 * width, 3, 2 * width), conv(2 * width, c)
        if kind == "squeeze":
            self.a, self.b = conv(c, width, 1), conv(width, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "plain":
                return torch.relu(self.norm(self.a(x)))
            case "project":
                return self.act(self.norm(self.a(x)) + self.shortcut(x))
            case "residual":
                return torch.relu(x + self.norm(self.b(torch.relu(self.a(x)))))
            case "concat":
                return torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
            case "preact":
                return self.c(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))
            case "twice":
                y = self.a(x)
                return torch.cat([y, x, y], 1)
            case "joined_residual":
                return torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)
            case "depthwise":
                return x + self.c(torch.relu(self.b(torch.relu(self.a(x)))))
            case "squeeze":
                return x * torch.sigmoid(self.b(torch.relu(self.a(x.mean((2, 3), keepdim=True)))))
        return nn.functional.max_pool2d(x, 2)


class Net(nn.Module):
    """(n, 3, 8, 8) → (n, 5)."""

    def __init__(self, blocks: list[str], widths: list[int], head: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, c = conv(3, widths[0]), widths[0]
        parts = []
        for kind, width in zip(blocks, widths[1:], strict=False):
            parts.append(Block(kind, c, width))
            c = parts[-1].width
        self.blocks, self.head = nn.Sequential(*parts), head
        side = 8 // 2 ** blocks.count("pool")
        if head == "mlp":
            self.hidden = nn.Linear(c * side**2, 6)
        self.answer = nn.Linear({"mean": c, "flatten": c * side**2, "mlp": 6}[head], 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
                part.running_mean = torch.rand(part.num_features)
                part.running_var = torch.rand(part.num_features) + 0.5
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        if self.head == "mean":
            return self.answer(x.mean((2, 3)))
        x = torch.flatten(x, 1)
        return self.answer(torch.relu(self.hidden(x)) if self.head == "mlp" else x)
