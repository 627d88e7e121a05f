"""Beside the libraries that people would otherwise use: same model, images, threads and runtime, without training.

    python -m benchmarks.peers MODEL.onnx DATA.npz [--share 0.5]

Peers are optional: what is not installed, or fails with this torch, is a row that says so. An environment of its own:

    python -m venv peers && peers/bin/pip install -e . nncf openvino neural-compressor tensorly

int8: ONNX Runtime's quantizer with its defaults, NNCF, Neural Compressor, ours. Structure at `--share` of the MACs:
torch-pruning's L2 pruner, Tucker-2 by tensorly, ours (allocated, repaired). The control that does nothing is the dense
file, as it is and compressed. Accuracy on the whole test part, latency as ratios to the original, batch 1, 1 thread.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from core.choices import Choices
from core.engine import evaluate, latency
from core.engine.context import Context
from core.engine.data import Data, to_input, to_tensor
from core.engine.data_sets import open_data
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import file_facts
from core.engine.models import Model, guess_normalization, open_model
from core.engine.perturb import describe
from core.engine.profile import profile
from core.engine.sensitivity import measure_cells
from core.engine.steps import Made, apply_step
from core.engine.surgery import copy_model, kind_of, replace_layer
from core.engine.techniques import quantize
from core.options import Quantize
from core.plan import steps_of

RESULTS = Path(__file__).parent / "results"
IMAGES = 256  # calibration images, the same for all
TABLE_IMAGES = 64
WIDTHS = tuple(i / 16 for i in range(1, 16))
PACKAGES = ("torch", "onnxruntime", "torch-pruning", "nncf", "neural-compressor", "openvino", "tensorly")
Make = Callable[[Model, Data, Path, Path, float], Path]  # (model, data, original file, folder, share) → file


def feeds(model: Model, data: Data) -> Iterator[dict[str, np.ndarray]]:
    """The calibration images, one at a time, as every quantizer takes them."""
    for row in to_input(data.calibration.x[:IMAGES], model.card):
        yield {"input": row[None]}


def dense(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    return original


def ort_default(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    """`quantize_static` as it comes, after the preprocessing that its documentation asks for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = feeds(model, data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    quant_pre_process(str(original), str(folder / "pre.onnx"))
    quantize_static(str(folder / "pre.onnx"), str(folder / "ort.onnx"), Reader())
    return folder / "ort.onnx"


def nncf_int8(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    import nncf

    made = nncf.quantize(onnx.load(original), nncf.Dataset(list(feeds(model, data))), subset_size=IMAGES)
    onnx.save(made, folder / "nncf.onnx")
    return folder / "nncf.onnx"


def neural_compressor(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1

        def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
            return ((feed["input"], 0) for feed in feeds(model, data))

    made = quantization.fit(str(original), PostTrainingQuantConfig(), calib_dataloader=Loader())
    made.save(str(folder / "inc.onnx"))
    return folder / "inc.onnx"


def our_int8(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    context = Context(model.card, data.train, data.calibration, data.validation, True, None)
    made = quantize.apply(onnx.load(original), Quantize(), {}, context).model
    onnx_writer.save(made, folder / "ours8.onnx")
    return folder / "ours8.onnx"


def torch_pruning(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    """Its group-norm pruner, the same share of every group, at the largest share of MACs that is at most `share`."""
    import torch_pruning as tp

    example = torch.zeros(1, *model.card.input_shape)
    whole, _ = tp.utils.count_ops_and_params(model.module, example)
    for ratio in np.linspace(0.02, 0.9, 45):
        net = copy_model(model.module)
        ignored = [m for m in net.modules() if isinstance(m, nn.Linear)]
        pruner = tp.pruner.MetaPruner(
            net, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=float(ratio),
            ignored_layers=ignored,
        )  # fmt: skip
        pruner.step()
        if tp.utils.count_ops_and_params(net, example)[0] <= share * whole:
            break
    onnx_writer.export(net, model.card, folder / "tp.onnx")
    return folder / "tp.onnx"


def tucker(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    """tensorly's partial Tucker of every 3×3 convolution, ranks at the share of channels that meets `share`."""
    from tensorly.decomposition import partial_tucker

    net, whole = copy_model(model.module), file_facts(original, model.card.input_shape).macs
    for kept in np.linspace(0.95, 0.1, 18):
        twin = copy_model(net)
        for name, layer in list(twin.named_modules()):
            if kind_of(layer) == "conv" and layer.kernel_size == (3, 3) and layer.in_channels > 3:
                replace_layer(twin, name, _tucker_layer(layer, float(kept), partial_tucker))
        onnx_writer.export(twin, model.card, folder / "tucker.onnx")
        if file_facts(folder / "tucker.onnx", model.card.input_shape).macs <= share * whole:
            break
    return folder / "tucker.onnx"


def _tucker_layer(layer: Any, kept: float, partial_tucker: Callable[..., Any]) -> nn.Sequential:
    ranks = [max(1, round(kept * c)) for c in (layer.out_channels, layer.in_channels)]
    (core, (outer, inner)), _ = partial_tucker(layer.weight.detach().numpy(), rank=ranks, modes=[0, 1])
    parts = nn.Sequential(
        nn.Conv2d(layer.in_channels, ranks[1], 1, bias=False),
        nn.Conv2d(ranks[1], ranks[0], 3, layer.stride, layer.padding, bias=False),
        nn.Conv2d(ranks[0], layer.out_channels, 1, bias=layer.bias is not None),
    )
    for part, weight in zip(parts, (inner.T[:, :, None, None], core, outer[:, :, None, None]), strict=True):
        part.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)))
    if layer.bias is not None:
        parts[2].bias = nn.Parameter(layer.bias.detach().clone())
    return parts


def our_pruning(model: Model, data: Data, original: Path, folder: Path, share: float) -> Path:
    """Widths from the sensitivity table at the budget, what remains solved again; no label is read."""
    about = profile(model, original)
    network = describe(model.module, model.card, about, data.calibration.take(slice(0, 128)))
    x = to_tensor(data.calibration.x[:TABLE_IMAGES], model.card)
    table = measure_cells(network, x, None, folder / "table.jsonl", {})
    plan = Choices(about, table, {"prune_channels": WIDTHS}).spend({"macs": share * about.macs})
    made = Made(copy_model(model.module))
    for step in steps_of(plan.levels):
        apply_step(step, made, model, data, 0, folder)
    onnx_writer.export(made.module, model.card, folder / "ours.onnx")
    return folder / "ours.onnx"


ROWS: dict[str, Make] = {
    "nothing: the dense model": dense,
    "int8, ONNX Runtime's defaults": ort_default,
    "int8, NNCF": nncf_int8,
    "int8, Neural Compressor": neural_compressor,
    "int8, ours": our_int8,
    "channels, torch-pruning L2": torch_pruning,
    "Tucker-2, tensorly": tucker,
    "channels, ours": our_pruning,
}


def measured(make: Make, model: Model, data: Data, original: Path, folder: Path, share: float) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        file = make(model, data, original, folder, share)
        spent = time.perf_counter() - began
        answers = evaluate.predict(file, data.test, model.card).argmax(1)
    except Exception as error:  # a peer may fail in any way: the row says so
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]}
    row = latency.compare(original, file, model.card, batches=(1,), threads=(1,))[0]
    content = file.read_bytes()
    return {
        "accuracy": float((answers == data.test.y).mean()), "bytes": len(content),
        "xz_bytes": len(lzma.compress(content)), "macs": file_facts(file, model.card.input_shape).macs,
        "times_faster": row.speedup, "spread": [row.speedup_low, row.speedup_high], "seconds": spent,
    }  # fmt: skip


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that structure may keep")
    asked = parser.parse_args()
    data = open_data({"kind": "file", "path": str(asked.data)})
    model = open_model({"kind": "file", "path": str(asked.model)})
    model = replace(model, card=guess_normalization(model, data.validation))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.onnx"
        if not onnx_writer.free_batch(asked.model, original):
            onnx_writer.export(model.module, model.card, original)
        for name, make in ROWS.items():
            rows[name] = measured(make, model, data, original, Path(folder), asked.share)
            print(f"{name:32}", json.dumps(rows[name]), flush=True)
    found = {
        "model": asked.model.stem,
        "share": asked.share,
        "versions": versions(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"peers-{asked.model.stem}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
