"""A sample that was trained on Shapes, as ONNX, with pictures drawn anew: as many as the prediction benchmarks need.

    python -m benchmarks.drawn shapes_mobilenet OUT/shapes_mobilenet.onnx OUT/shapes.npz [--images 10000]

The pictures come from another seed than those the sample was trained, validated and tested on. Its pixels are scaled by
`--mean 0.5 0.5 0.5 --std 0.25 0.25 0.25`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from core.engine import shapes
from core.engine.formats import onnx_writer
from core.engine.models import open_model

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    model = open_model({"kind": "sample", "name": args.sample})
    onnx_writer.export(model.module, model.card, args.model)
    x, y, _, _ = shapes.make(args.images, SEED)
    np.savez_compressed(args.data, x_test=x, y_test=y, classes=np.array(shapes.CLASSES))


if __name__ == "__main__":
    main()
