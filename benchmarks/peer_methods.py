"""What stands beside each other in benchmarks.peers: each makes an ONNX file of the same model from the same images.

Peers by their own defaults: ONNX Runtime's quantizer, NNCF, Neural Compressor; torch-pruning's group-norm pruner, the
same share of every group, alone and with the fine-tuning of its examples; Tucker-2 by tensorly. Ours are recipes; the
widths come from the sensitivity table at the budget of MACs and no label is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.label_training import train_on_labels
from benchmarks.tucker import tucker_layer
from core.choices import Choices
from core.engine.batchnorm import fold_batchnorm, has_batchnorm, insert_batchnorm
from core.engine.data import Data, to_input, to_tensor
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import file_facts
from core.engine.models import Model
from core.engine.optimize import estimate_epoch
from core.engine.perturb import describe
from core.engine.precision import placed
from core.engine.profile import profile
from core.engine.run import build
from core.engine.sensitivity import measure_cells
from core.engine.surgery import copy_model, kind_of, replace_layer
from core.plan import steps_of
from core.recipe import Recipe, Step

IMAGES = 256  # calibration images, the same for all
POOL = 512  # images that the sensitivity table picks from
WIDTHS = tuple(i / 16 for i in range(1, 16))
EPOCHS = 20  # at most, of ours


@dataclass(frozen=True)
class Job:
    """What every method gets."""

    model: Model
    data: Data
    original: Path
    folder: Path
    share: float  # of the MACs that structure may keep
    seconds: float  # of processor time that training may take

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """The calibration images, one at a time, as every quantizer takes them."""
        for row in to_input(self.data.calibration.x[:IMAGES], self.model.card):
            yield {"input": row[None]}

    def macs(self, file: Path) -> int:
        return file_facts(file, self.model.card.input_shape).macs

    @cached_property
    def plan(self) -> tuple[Step, ...]:
        """Channels to remove, by the exact plan of the budget."""
        about = profile(self.model, self.original)
        few = self.data.calibration.take(slice(0, 128))
        network = describe(self.model.module, self.model.card, about, few)
        x = to_tensor(self.data.calibration.x[:POOL], self.model.card)
        path = self.folder / "table.jsonl"
        table = measure_cells(network, x, None, path, {}, techniques=("prune_channels",))
        return steps_of(
            Choices(about, table, {"prune_channels": WIDTHS}).spend({"macs": self.share * about.macs}).levels
        )


Make = Callable[[Job], Path]


def ort_default(job: Job) -> Path:
    """`quantize_static` as it comes, after the preprocessing that its documentation asks for."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = job.feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    quant_pre_process(str(job.original), str(job.folder / "pre.onnx"))
    quantize_static(str(job.folder / "pre.onnx"), str(job.folder / "ort.onnx"), Reader())
    return job.folder / "ort.onnx"


def nncf_int8(job: Job) -> Path:
    import nncf

    made = nncf.quantize(onnx.load(job.original), nncf.Dataset(list(job.feeds())), subset_size=IMAGES)
    onnx.save(made, job.folder / "nncf.onnx")
    return job.folder / "nncf.onnx"


def openvino_int8(job: Job) -> Path:
    """The same quantizer for OpenVINO's own runtime."""
    import nncf
    import openvino

    network = openvino.convert_model(job.original)
    made = nncf.quantize(network, nncf.Dataset([feed["input"] for feed in job.feeds()]), subset_size=IMAGES)
    openvino.save_model(made, job.folder / "openvino.xml")
    return job.folder / "openvino.xml"


def neural_compressor(job: Job) -> Path:
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1

        def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
            return ((feed["input"], 0) for feed in job.feeds())

    made = quantization.fit(str(job.original), PostTrainingQuantConfig(), calib_dataloader=Loader())
    made.save(str(job.folder / "inc.onnx"))
    return job.folder / "inc.onnx"


def pruned_by_torch_pruning(
    job: Job, criterion: str = "MagnitudeImportance", module: nn.Module | None = None
) -> nn.Module:
    """At the largest share of MACs that is at most the budget; `module` is the model's own unless given."""
    import torch_pruning as tp

    module = job.model.module if module is None else module
    example = torch.zeros(1, *job.model.card.input_shape)
    whole, _ = tp.utils.count_ops_and_params(module, example)
    last = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]

    def pruned(ratio: float) -> nn.Module:
        net = copy_model(module)
        ignored = [n for m, n in zip(module.modules(), net.modules(), strict=True) if m is last]
        importance = getattr(tp.importance, criterion)()
        tp.pruner.MetaPruner(net, example, importance=importance, pruning_ratio=ratio, ignored_layers=ignored).step()
        return net  # type: ignore[no-any-return]

    def removed(ratio: float) -> float:
        return 1 - float(tp.utils.count_ops_and_params(pruned(ratio), example)[0]) / whole

    ratios = np.linspace(0.02, 0.9, 45).tolist()
    return pruned(ratios[min(bisect_left(ratios, 1 - job.share, key=removed), len(ratios) - 1)])


def torch_pruning(job: Job) -> Path:
    onnx_writer.export(pruned_by_torch_pruning(job), job.model.card, job.folder / "tp.onnx")
    return job.folder / "tp.onnx"


def torch_pruning_trained(job: Job) -> Path:
    """Then trained on the labels as its examples do: SGD, shifts and mirrors, a falling rate; in bfloat16 as ours.
    BatchNorm, which files have folded and its examples prune with, is put back first: in training it gives every
    channel left the mean and the scale that it had before."""
    whole, data, card = copy_model(job.model.module), job.data, job.model.card
    norms = () if has_batchnorm(whole) else insert_batchnorm(whole, to_tensor(data.train.x[:512], card))
    net = pruned_by_torch_pruning(job, module=whole)
    with placed(net):
        train_on_labels(net.train(), data, card, job.seconds)
    fold_batchnorm(net.eval(), norms)
    onnx_writer.export(net, card, job.folder / "tp_trained.onnx")
    return job.folder / "tp_trained.onnx"


def tucker(job: Job) -> Path:
    """tensorly's partial Tucker of every convolution over more than a pixel, at the share of channels that fits."""
    from tensorly.decomposition import partial_tucker

    whole, file, layers = job.macs(job.original), job.folder / "tucker.onnx", dict(job.model.module.named_modules())
    fit = [n for n, m in layers.items() if kind_of(m) == "conv" and max(m.kernel_size) > 1 and m.in_channels > 3]
    if not fit:
        raise ValueError("no convolution has more than one pixel and three channels to factorize")
    for kept in np.linspace(0.95, 0.1, 18):
        twin = copy_model(job.model.module)
        for name in fit:
            replace_layer(twin, name, tucker_layer(layers[name], float(kept), partial_tucker))
        onnx_writer.export(twin, job.model.card, file)
        if job.macs(file) <= job.share * whole:
            break
    return file


def ours(*numbers: Step, plan: bool = False, train: bool = False) -> Make:
    """A recipe of ours: the planned channels, training for the time given, then number types."""

    def make(job: Job) -> Path:
        steps, data = (*(job.plan if plan else ()), *numbers), job.data
        if train:
            epoch = estimate_epoch(job.model, data)
            share = min(1.0, job.seconds / epoch)  # less than one pass: over fewer images
            data = replace(data, train=data.train.take(slice(0, round(share * len(data.train)))))
            epochs = max(1, min(EPOCHS, int(job.seconds / epoch)))
            steps = (*job.plan, Step("distill", {"epochs": epochs}), *numbers)
        name = "-".join(step.technique for step in steps)
        return build(Recipe(steps), job.model, replace(data, test=data.test.take(slice(0, 0))), job.folder / name).file

    return make


INT8, FOUR_BITS = Step("quantize"), Step("quantize_weights")
METHODS: dict[str, Make] = {
    "nothing: the dense model": lambda job: job.original,
    "int8, ONNX Runtime's defaults": ort_default,
    "int8, NNCF": nncf_int8,
    "int8, OpenVINO": openvino_int8,
    "int8, Neural Compressor": neural_compressor,
    "int8, ours": ours(INT8),
    "weights of 4 bits, ours": ours(FOUR_BITS),
    "Tucker-2, tensorly": tucker,
    "channels, torch-pruning L2": torch_pruning,
    "channels, ours": ours(plan=True),
    "channels and int8, ours": ours(INT8, plan=True),
}
TRAINED: dict[str, Make] = {
    "channels, trained, torch-pruning": torch_pruning_trained,
    "channels, trained, ours": ours(plan=True, train=True),
    "channels, trained, int8, ours": ours(INT8, plan=True, train=True),
}
