"""A MobileNetV2 for 32×32 images: inverted residuals with linear bottlenecks, no Swish and no squeeze-excite.

MobileNetV2: Inverted Residuals and Linear Bottlenecks, Sandler et al. 2018. The stem and the first block keep the size
of the map, since the images are small. Widths are multiples of 8.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2), (4, 96, 1, 1))
STEM, HEAD = 16, 256


def unit(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU6."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(c_out), nn.ReLU6()]


class Inverted(nn.Module):
    """Widen, filter each channel, narrow. (n, c_in, h, w) → (n, c_out, h / stride, w / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        widen = unit(c_in, wide) if expansion > 1 else []
        narrow = [nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        self.branch = nn.Sequential(*widen, *unit(wide, wide, 3, stride, wide), *narrow)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y if self.residual else y


class SmallMobileNet(nn.Module):
    """(n, 3, 32, 32) → (n, classes) logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks, c_in = [], STEM
        for expansion, c_out, repeats, stride in STAGES:
            for number in range(repeats):
                blocks.append(Inverted(c_in, c_out, stride if number == 0 else 1, expansion))
                c_in = c_out
        self.stem = nn.Sequential(*unit(3, STEM, 3))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*unit(c_in, HEAD))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(HEAD, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))  # type: ignore[no-any-return]
