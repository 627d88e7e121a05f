"""Recipe → the operators that its file will have, and so its peak activation memory, from the profile alone.

Widths scale values, factors add some, and an emptied branch goes with its sum and, where that would change nothing, the
activation behind it: as the techniques themselves do. Exact in float. Where layers compute in int8, values that a
quantized operator makes or reads take a quarter; the runtime's tools put such a file in another order and may leave
some of it in float, so that this is a prediction. `components/memory.js` mirrors it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from core.layers import Layer
from core.liveness import IMAGE, Operator, peak_bytes
from core.network import Network

WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
QUANTIZED = WEIGHTED | {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu",
    "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def peak_after(operators: Sequence[Operator], net: Network) -> int | None:
    """Bytes of a network as its steps left it; None where nothing was recorded, or only a run can tell."""
    return peak_bytes(operators_after(operators, net)) if operators and net.peak_known else None


def operators_after(operators: Sequence[Operator], net: Network) -> list[Operator]:
    """Those that are left, in order."""
    left: list[Operator] = []
    now: list[int | None] = []  # of each original operator: what stands for its value now, None where it is empty
    for at, operator in enumerate(operators):
        there = tuple(x for r in operator.reads if (x := now[r]) is not None)
        parts = net.parts.get(operator.layer, [])
        empty = operator.reads and not there
        if empty or (parts and all(part.name in net.gone for part in parts)):
            now.append(None)
        elif _passes(operators, at, now, left):
            now.append(there[0])
        else:
            for part in parts[:-1]:
                left.append(Operator(operator.kind, there, _size_of(part, net), part.name))
                there = (len(left) - 1,)
            name = parts[-1].name if parts else ""
            left.append(Operator(operator.kind, there, _resized(operator, net), name, operator.channels, *operator[5:]))
            now.append(len(left) - 1)
    return _in_bytes(_needed(left), net)


def _passes(operators: Sequence[Operator], at: int, now: Sequence[int | None], left: Sequence[Operator]) -> bool:
    """Whether an operator is left out: a sum of one summand, or the activation behind it where that has one already."""
    operator = operators[at]
    if operator.kind == "Add":
        return any(now[r] is None for r in operator.reads)
    source = now[operator.reads[0]] if operator.kind == "Relu" else None
    if source is None or left[source].kind != "Relu" or sum(operator.reads[0] in x.reads for x in operators) > 1:
        return False
    total = operators[operator.reads[0]]
    return total.kind == "Add" and any(now[r] is None for r in total.reads)


def _resized(operator: Operator, net: Network) -> int:
    return operator.size + sum(each * (net.width[g] - net.groups[g].channels) for g, each in operator.channels)


def _size_of(part: Layer, net: Network) -> int:
    """Bytes of what a factor makes for the next one."""
    return 4 * net.channels(part)[1] * prod(part.output_shape[1:])


def _needed(operators: Sequence[Operator]) -> list[Operator]:
    """The image, and all whose values are read on the way to the answer."""
    needed = [operator.answer or operator.kind == IMAGE for operator in operators]
    for at in reversed(range(len(operators))):
        for source in operators[at].reads if needed[at] else ():
            needed[source] = True
    place = {at: number for number, at in enumerate(at for at, wanted in enumerate(needed) if wanted)}
    left = (operators[at] for at in place)
    return [Operator(x.kind, tuple([place[r] for r in x.reads]), *x[2:]) for x in left]


def _follows(operator: Operator, net: Network) -> bool:
    """Whether it computes in what its input is in."""
    return operator.kind not in WEIGHTED or any(part.kind == "shortcut" for part in net.parts.get(operator.layer, ()))


def _in_bytes(operators: list[Operator], net: Network) -> list[Operator]:
    """The same where some layers compute in integers."""
    if not any(operator.layer in net.integer for operator in operators):
        return operators
    inside: list[bool] = []  # what is quantized, the image not
    for x in operators:
        inside.append(x.layer in net.integer or (_follows(x, net) and any(inside[r] for r in x.reads)))
    touched = [within and x.kind in QUANTIZED for within, x in zip(inside, operators, strict=True)]
    read = {r for x, within in zip(operators, touched, strict=True) if within for r in x.reads}
    uses = Counter(r for x in operators for r in x.reads)
    left: list[Operator] = []
    now: list[int] = []
    for at, x in enumerate(operators):
        reads = tuple(now[r] for r in x.reads)
        if touched[at] and x.kind in ("Relu", "Clip") and uses[x.reads[0]] == 1 and left[reads[0]].reads:
            now.append(reads[0])  # the range of the quantized value does its work
            continue
        if x.kind != IMAGE and (touched[at] or at in read):
            channels = tuple((group, each // 4) for group, each in x.channels)
            left.append(Operator(x.kind, reads, x.size // 4, x.layer, channels, True, x.answer))
        else:
            left.append(Operator(x.kind, reads, *x[2:]))
        if x.kind == IMAGE and at in read:
            left.append(Operator("QuantizeLinear", (len(left) - 1,), x.size // 4, integer=True))
        now.append(len(left) - 1)
    return left
