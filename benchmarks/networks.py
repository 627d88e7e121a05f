"""A network whose checkpoint comes without its code, as ONNX and images that the studio and the benchmarks open.

    python -m benchmarks.networks DS_CNN.pth MFCC.npz OUT/ds_cnn_kws.onnx OUT/kws.npz [--pool 300]

DS-CNN of MLPerf Tiny (Banbury et al. 2021, after Hello Edge, Zhang et al. 2018): 12 spoken words as MFCC maps 49 × 10.
MFCC.npz holds x (n, 1, 49, 10) float32, y and classes. The studio reads pictures of 8 bits, and so did the maps' maker:
they are multiples of one step, so as bytes they lose nothing. The command prints the mean and the deviation that turn
the bytes back into MFCC, and the accuracy on both. `--pool` maps become x_train, the others x_test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.data import to_tensor
from core.engine.formats import onnx_writer

STEP, ZERO = 0.5847029089927673, 211  # of MLPerf Tiny's own integer inputs: value = STEP × (byte - ZERO)
MEAN, STD = ZERO / 255, 1 / (255 * STEP)
BLOCKS, WIDTH, CLASSES = 4, 64, 12


class DepthwiseCNN(nn.Module):
    """(n, 1, 49, 10) MFCC → (n, 12) logits; BatchNorm is folded already. Even kernels are padded as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, WIDTH, (10, 4), 2), nn.ReLU()]
        for _ in range(BLOCKS):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.ReLU()]
            layers += [nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def to_bytes(x: np.ndarray) -> np.ndarray:
    """MFCC (n, 1, h, w) → pictures (n, h, w, 1) uint8."""
    return np.clip(np.round(x / STEP) + ZERO, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "maps", "model", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--pool", type=int, default=0, help="maps in x_train; the others are x_test")
    args = parser.parse_args()
    net = DepthwiseCNN().eval()
    net.load_state_dict(torch.load(args.weights, weights_only=True))
    arrays = np.load(args.maps)
    classes = tuple(map(str, arrays["classes"]))
    card = ModelCard(args.model.stem, "DS-CNN", (1, 49, 10), classes, mean=(MEAN,), std=(STD,))
    onnx_writer.export(net, card, args.model)
    order = np.random.default_rng(0).permutation(len(arrays["x"]))
    x, y = to_bytes(arrays["x"])[order], arrays["y"][order].astype(np.int64)
    pool = {"x_train": x[: args.pool], "y_train": y[: args.pool]} if args.pool else {}
    np.savez_compressed(args.data, x_test=x[args.pool :], y_test=y[args.pool :], classes=arrays["classes"], **pool)
    with torch.no_grad():
        for name, maps, labels in (
            ("MFCC", torch.from_numpy(arrays["x"]), arrays["y"]),
            ("bytes", to_tensor(x, card), y),
        ):
            print(f"{name}: {100 * float((net(maps).argmax(1).numpy() == labels).mean()):.2f} % of {len(labels)}")
    print(f"--mean {MEAN:.10g} --std {STD:.10g}")


if __name__ == "__main__":
    main()
