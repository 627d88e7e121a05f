"""What quantization gives, beside ONNX Runtime's own quantizer: speed, size and answers of the files themselves.

    python -m benchmarks.quantization mobilenet_v3_small efficientnet_b0
    python -m benchmarks.quantization resnet20_cifar10.onnx --data cifar10.npz --weights 3 4 5 6 8

A name is a torchvision network with random weights, whose answers are compared in dB on images it was not calibrated
on; a file is a classifier, whose accuracy and agreement are over all test images of --data (calibrated on training
images). ONNX Runtime's quantizer gets its own preparation and its best defaults: uint8 activations, int8 weights per
channel, ranges by minimum and maximum. Where OpenVINO and NNCF are installed (`benchmarks.peers` says how), their int8
stands beside, in OpenVINO's own runtime. Files are timed at batch 1 on one thread, in turns; the speed-up is the ratio
of the fastest runs, with the median and the 10th and 90th percentile of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from onnxruntime import quantization as ort
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers import opened
from benchmarks.subjects import IMAGENET
from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images, to_input
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_int8 import _Batch, quiet
from core.engine.models import open_model
from core.engine.techniques import quantize, quantize_weights
from core.options import Quantize, QuantizeWeights

RESULT = Path(__file__).parent / "results" / "quantization.json"
CALIBRATION, CHECK, TURNS, RUNS = 64, 32, 60, 3
Test = tuple[np.ndarray, np.ndarray | None]  # images (n, h, w, c) and labels


def noise(count: int, size: int, seed: int) -> np.ndarray:
    """Images (n, size, size, 3) of coarse squares under fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + rng.integers(-30, 31, coarse.shape), 0, 255).astype(np.uint8)


def named(name: str, folder: Path) -> tuple[Path, Context, Test]:
    """A torchvision network with random weights and normalizations that fit them."""
    torch.manual_seed(0)
    card = ModelCard(name, name, (3, 224, 224), tuple(map(str, range(1000))), **IMAGENET)
    calibration = Images(noise(CALIBRATION, 224, 1), None)
    module = getattr(torchvision.models, name)(weights=None).train()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        module(torch.from_numpy(to_input(calibration.x[:16], card)))
    file = folder / "float.onnx"
    onnx_writer.export(module.eval(), card, file)
    return file, Context(card, calibration, calibration, calibration, False, None), (noise(CHECK, 224, 2), None)


def filed(path: Path, data: Path, folder: Path) -> tuple[Path, Context, Test]:
    model, arrays = open_model({"kind": "file", "path": str(path), **IMAGENET}), np.load(data)
    order = np.random.default_rng(0).permutation(len(arrays["x_train"]))
    parts = [
        Images(arrays["x_train"][i], arrays["y_train"][i].astype(np.int64)) for i in (order[:512], order[512:2512])
    ]
    file = folder / "float.onnx"
    onnx_writer.export(model.module, model.card, file)
    context = Context(model.card, parts[1], parts[0], parts[1], True, None)
    return file, context, (arrays["x_test"], arrays["y_test"])


def stock(file: Path, context: Context, folder: Path) -> Path:
    """ONNX Runtime's own quantizer on the same images."""
    plain, made = folder / "plain.onnx", folder / "stock.onnx"
    x = to_input(context.calibration.x[: Quantize().images], context.card)
    with quiet():
        quant_pre_process(file, plain)
        reader = _Batch("input", x[:1])
        reader.feeds = iter([{"input": x[i : i + 1]} for i in range(len(x))])
        kinds = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8}
        ort.quantize_static(plain, made, reader, per_channel=True, **kinds)
    return made


def openvino_int8(file: Path, context: Context, folder: Path) -> Path:
    """NNCF's quantizer on the same images, for OpenVINO's own runtime."""
    import nncf
    import openvino

    x = to_input(context.calibration.x[: Quantize().images], context.card)
    images = nncf.Dataset([x[i : i + 1] for i in range(len(x))])
    made = nncf.quantize(openvino.convert_model(file), images, subset_size=len(x))
    openvino.save_model(made, folder / "openvino.xml")
    return folder / "openvino.xml"


def logits(file: Path, card: ModelCard, x: np.ndarray) -> np.ndarray:
    run = opened(file)
    return np.concatenate([run(to_input(x[i : i + 100], card)) for i in range(0, len(x), 100)])


def seconds(files: list[Path], shape: tuple[int, ...]) -> np.ndarray:
    """(turns, files): the fastest of a few runs in a row, in an order that rotates."""
    runs = [opened(file) for file in files]
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    found = np.full((TURNS + 1, len(files)), np.inf)
    for turn in range(TURNS + 1):
        for place in range(len(files)):
            index = (place + turn) % len(files)
            for _ in range(RUNS):
                began = time.perf_counter()
                runs[index](x)
                found[turn, index] = min(found[turn, index], time.perf_counter() - began)
    return found[1:]


def measure(subject: str, data: Path | None, widths: list[int]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_file = subject.endswith(".onnx")
        assert data or not is_file, "a file needs --data"
        file, context, (x, y) = filed(Path(subject), data, folder) if data and is_file else named(subject, folder)
        rows: list[dict[str, Any]] = [{"kind": "float"}, {"kind": "onnxruntime int8"}]
        files = [file, stock(file, context, folder)]
        if find_spec("openvino") and find_spec("nncf"):
            rows.append({"kind": "openvino int8"})
            files.append(openvino_int8(file, context, folder))
        steps: list[tuple[str, Any, Any]] = [("ours int8", quantize, Quantize())]
        steps += [(f"ours weights {bits} bits", quantize_weights, QuantizeWeights(bits)) for bits in widths]
        for number, (kind, technique, options) in enumerate(steps):
            began = time.perf_counter()
            outcome = technique.apply(onnx.load(file), options, {}, context)
            spent = round(time.perf_counter() - began, 1)
            files.append(folder / f"{number}.onnx")
            onnx_writer.save(outcome.model, files[-1])
            rows.append({"kind": kind, "seconds": spent, "in_float": [skip.layer for skip in outcome.skipped]})
        times, before = seconds(files, context.card.input_shape), logits(file, context.card, x)
        for index, row in enumerate(rows):
            after = logits(files[index], context.card, x)
            ratios = np.percentile(times[:, 0] / times[:, index], (50, 10, 90))
            parts = [files[index], files[index].with_suffix(".bin")]  # OpenVINO keeps weights beside the graph
            row |= {"net": Path(subject).stem, "bytes": sum(part.stat().st_size for part in parts if part.exists())}
            row["speedup"] = round(float(times[:, 0].min() / times[:, index].min()), 3)
            row["median_p10_p90"] = [round(float(r), 3) for r in ratios]
            row["agreement"] = float((after.argmax(1) == before.argmax(1)).mean())
            if y is not None:
                row["accuracy"] = float((after.argmax(1) == y).mean())
            elif index:
                row["sqnr_db"] = round(float(10 * np.log10((before**2).sum() / ((after - before) ** 2).sum())), 1)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=int, nargs="*", default=[])
    given = parser.parse_args()
    known = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    for subject in given.subjects:
        rows = measure(subject, given.data, given.weights)
        known = [row for row in known if row["net"] != rows[0]["net"]] + rows
        for row in rows:
            quality = f"{row['accuracy']:.2%}" if "accuracy" in row else f"{row.get('sqnr_db', '')} dB"
            low, high = row["median_p10_p90"][1:]
            sizes = f"{row['net']:18} {row['kind']:22} {row['bytes']:>10,} B"
            print(f"{sizes}  {row['speedup']:.2f}x ({low}-{high})  {quality}", flush=True)
        about = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, "machine": platform.machine()}
        about |= {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"about": about, "rows": known}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
