"""Names of the imported layers: the module paths of the network that was exported, as far as the file tells them.

A weight called `layer1.0.conv1.weight` names its layer `layer1.0.conv1`. Where the exporter renamed the weights, the
node tells: `/layer1/layer1.0/conv1/Conv` (TorchScript) or the scopes in its metadata (dynamo). Otherwise: `conv_3`.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable

from onnx import NodeProto
from torch import fx

WEIGHTED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu"),
    *("InstanceNormalization", "GroupNormalization", "LayerNormalization"),
)
PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
SCOPES = "pkg.torch.onnx.name_scopes"
LONGEST = 200  # characters of a path


class Names:
    """Hands out module paths: each once, none inside a layer, none that Python or torch.fx reserves."""

    def __init__(self, nodes: Iterable[NodeProto]) -> None:
        paths = [path for node in nodes if node.op_type in WEIGHTED and (path := written(node))]
        self.containers = {prefix for path in paths for prefix in _prefixes(path)}
        self.planned = set(paths)
        self.taken: set[str] = set()
        self.counts: Counter[str] = Counter()

    def of_layer(self, node: NodeProto) -> str:
        """The path of the layer that `node` becomes."""
        kind, path = node.op_type.lower(), written(node)
        if path in self.taken:  # its weight is another layer's too
            path = _from_node(node) or path
        if path and node.op_type not in WEIGHTED and (path in self.containers or path in self.planned):
            path = f"{path}.{kind}"  # a function called in that module, not a layer of its own
        if not path:
            path = f"{kind}_{self.counts[kind]}"
            self.counts[kind] += 1
        return self.unique(path)

    def unique(self, path: str) -> str:
        """`path`, or with the first free number behind it."""
        path = ".".join(_allowed(part) for part in path.split("."))
        while any(prefix in self.taken for prefix in _prefixes(path)):
            path = "_".join(path.rsplit(".", 1))  # inside a layer: beside it instead
        name, number = path, 0
        while name in self.taken or name in self.containers:
            number += 1
            name = f"{path}_{number}"
        self.taken.add(name)
        self.containers.update(_prefixes(name))
        return name


def written(node: NodeProto) -> str:
    """The module path that the file gives for `node`; "" when it gives none."""
    weight = node.input[1] if len(node.input) > 1 else ""
    if node.op_type in WEIGHTED and weight.endswith(".weight") and PATH.fullmatch(weight) and len(weight) <= LONGEST:
        return weight.removesuffix(".weight")
    return _from_node(node)


def _from_node(node: NodeProto) -> str:
    """The path that the node's own name or metadata gives."""
    if node.name.startswith("/"):
        path = _from_scopes(node.name.split("/")[1:-1])
    else:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
        path = ([*re.findall(r"'([^']*)'", scopes), ""][-3:-2] or [""])[0]
    return path if PATH.fullmatch(path) and len(path) <= LONGEST else ""


def _from_scopes(scopes: list[str]) -> str:
    """['layer1', 'layer1.0', 'conv1'] → 'layer1.0.conv1': a sequence's members repeat its name."""
    parts: list[str] = []
    for scope in scopes:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts[-1] = scope
        else:
            parts.append(scope)
    return ".".join(parts)


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _allowed(part: str) -> str:
    reserved = keyword.iskeyword(part) or hasattr(fx.GraphModule, part) or part in ("graph", "meta", "training")
    return f"{part}_" if reserved else part
