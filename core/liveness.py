"""Peak activation memory: the largest sum of tensors that are alive at once when operators run in the file's order.

A value lives from the operator that makes it to the last one that reads it, for one image; element-wise operators write
over an input that nobody else needs (as in tinygrad's `schedule/memory.py`). The same rule counts a file
(`core/engine/formats/onnx_memory.py`) and what a recipe would leave of it (`core/memory.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ACTIVATIONS = frozenset(
    ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Mish")
)
SAME_SIZE = frozenset(("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Add", "Mul", "Sub", "Div"))
IN_PLACE = ACTIVATIONS | SAME_SIZE
IMAGE = "Image"  # the kind of what the file is given


class Operator(NamedTuple):
    """One operator of a file and the value that it makes, for one image."""

    kind: str  # as ONNX names it
    reads: tuple[int, ...]  # the operators whose values it reads
    size: int  # bytes of its value
    layer: str = ""  # what it computes
    channels: tuple[tuple[str, int], ...] = ()  # (group, bytes of each of its channels); the rest of `size` is fixed
    integer: bool = False  # its value is one byte per number, and written over nothing
    answer: bool = False  # its value is what the model gives


def readers_of(operators: Sequence[Operator]) -> list[list[int]]:
    """For every operator, those that read its value, in order."""
    readers: list[list[int]] = [[] for _ in operators]
    for at, operator in enumerate(operators):
        for source in operator.reads:
            readers[source].append(at)
    return readers


def homes(operators: Sequence[Operator]) -> list[int]:
    """For every operator, the one in whose value's memory its own value lies."""
    readers, home = readers_of(operators), list(range(len(operators)))
    for at, operator in enumerate(operators):
        if operator.kind in IN_PLACE and not operator.integer:
            free = (r for r in operator.reads if readers[r] == [at] and not operators[r].answer)
            home[at] = next((home[r] for r in free if operators[home[r]].size == operator.size), at)
    return home


def alive(operators: Sequence[Operator]) -> list[list[int]]:
    """For every operator, the values that are in memory while it runs, as the operators in whose memory they lie."""
    readers, home, ends = readers_of(operators), homes(operators), [0] * len(operators)
    for at, operator in enumerate(operators):
        last = len(operators) if operator.answer else max(readers[at], default=at)
        ends[home[at]] = max(ends[home[at]], last)
    found, now = [], list[int]()
    for at, place in enumerate(home):
        now = [x for x in now if ends[x] >= at] + ([at] if place == at else [])
        found.append(now)
    return found


def peak_bytes(operators: Sequence[Operator]) -> int:
    """The most bytes that are in memory at once."""
    return max(sum(operators[x].size for x in moment) for moment in alive(operators))
