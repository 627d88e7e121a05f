"""The operators of the file that a model is exported to, each value's bytes told by channel group, so that the memory
of any pruned model follows without a tensor (`core/memory.py`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import run_blank
from core.engine.formats.onnx_memory import read_operators
from core.engine.models import Model
from core.engine.surgery import shortcuts
from core.layers import Layer
from core.liveness import Operator

FOLDED = frozenset(("BatchNormalization", "Identity", "Dropout", "Cast"))  # an export has none that could go


def exported_operators(model: Model, file: Path, layers: Sequence[Layer]) -> tuple[Operator, ...]:
    """Of `file` where it is what an export of `model` would be, else of an export; none where that does not have
    each layer once."""
    with as_exported(model, file) as export:
        found = _read(export, model, layers)
    if found or model.file is None:
        return found
    with _export(model) as export:
        return _read(export, model, layers)


@contextmanager
def as_exported(model: Model, file: Path) -> Iterator[Path]:
    """`file` where it is what an export of `model` would be, else an export, for as long as it is looked at."""
    graph = onnx.load(file, load_external_data=False).graph
    copied = any("weight" in layer._buffers for layer in shortcuts(model.module).values())
    if model.file is None or (FOLDED.isdisjoint(node.op_type for node in graph.node) and not copied):
        yield file
    else:
        with _export(model) as export:
            yield export


@contextmanager
def _export(model: Model) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "model.onnx"
        onnx_writer.export(model.module, model.card, export)
        yield export


def _read(file: Path, model: Model, layers: Sequence[Layer]) -> tuple[Operator, ...]:
    proto = onnx.load(file)
    values = run_blank(proto, model.card.input_shape)
    rows = {layer.name: layer for layer in layers if layer.kind not in ("norm", "other")}
    found = [x._replace(layer=x.layer if x.layer in rows else "") for x in read_operators(proto.graph, values)]
    parts = Counter(x.layer for x in found)
    if any(parts[name] != 1 for name in rows):
        return ()
    bound: list[Operator] = []
    for operator in found:
        bound.append(operator._replace(channels=_channels(operator, bound, rows.get(operator.layer))))
    return tuple(bound)


def _channels(operator: Operator, before: Sequence[Operator], row: Layer | None) -> tuple[tuple[str, int], ...]:
    """(group, bytes of each of its channels) of an operator's value; what is not divided evenly counts as fixed."""
    if row is not None and row.group:
        return ((row.group, operator.size // row.out_channels),)
    sources = [before[r] for r in operator.reads]
    if not sources or operator.kind in ("Shape", "Size"):
        return ()
    if operator.kind == "Concat" and sum(x.size for x in sources) == operator.size:
        sums = Counter[str]()
        for source in sources:
            sums.update(dict(source.channels))
        return tuple(sums.items())
    widest = max(sources, key=lambda x: x.size)
    scaled = [(group, each * operator.size, widest.size) for group, each in widest.channels]
    return tuple((group, whole // of) for group, whole, of in scaled if whole % of == 0)
