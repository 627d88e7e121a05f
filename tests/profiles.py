"""Profiles written by hand, with every kind of layer that costs depend on, so that tests of pages need no engine."""

from __future__ import annotations

from core.layers import Feed, Group, Layer, Profile
from core.liveness import IMAGE, Operator, peak_bytes


def layer(
    name: str,
    kind: str,
    widths: tuple[int, int],
    kernel: int,
    sizes: tuple[int, int],
    group: str,
    feeds: tuple[Feed, ...] = (),
    *,
    groups: int = 1,
    bias: bool = False,
) -> Layer:
    """A layer with square images: `widths` are channels in and out, `sizes` are sides of the image in and out."""
    (into, out), (before, after) = widths, sizes
    weights = 0 if kind == "norm" else into // groups * out * kernel**2
    params = 2 * out if kind == "norm" else weights + bias * out
    shape = (out,) if kind == "linear" else (out, after, after)
    return Layer(
        name, kind, params, weights * after**2, into, out, (kernel, kernel), groups, bias, shape,
        4 * out * after**2, group, feeds, None, (into,) if kind == "linear" else (into, before, before),
    )  # fmt: skip


def whole(layers: tuple[Layer, ...], groups: tuple[Group, ...], flow: Flow) -> Profile:
    operators = flow.done()
    return Profile(
        layers,
        groups,
        sum(x.params for x in layers),
        sum(x.macs for x in layers),
        sum(x.activation_bytes for x in layers),
        peak_bytes(operators),
        4 * sum(x.params for x in layers) + 5000,
        operators=operators,
    )


class Flow:
    """The operators of a file, written one by one; each gives its place."""

    def __init__(self, image: int) -> None:
        self.found = [Operator(IMAGE, (), image)]

    def layer(self, kind: str, row: Layer, source: int) -> int:
        channels = ((row.group, row.activation_bytes // row.out_channels),)
        return self._add(Operator(kind, (source,), row.activation_bytes, row.name, channels))

    def act(self, source: int, kind: str = "Relu") -> int:
        return self._add(self.found[source]._replace(kind=kind, reads=(source,), layer=""))

    def add(self, *sources: int) -> int:
        return self._add(self.found[sources[0]]._replace(kind="Add", reads=sources, layer=""))

    def shrink(self, source: int, kind: str, by: int) -> int:
        """A pool, to so many times fewer pixels."""
        x = self.found[source]
        return self._add(Operator(kind, (source,), x.size // by, "", tuple((g, each // by) for g, each in x.channels)))

    def join(self, *sources: int) -> int:
        size, channels = 0, []
        for x in (self.found[at] for at in sources):
            size, channels = size + x.size, [*channels, *x.channels]
        return self._add(Operator("Concat", sources, size, "", tuple(channels)))

    def done(self) -> tuple[Operator, ...]:
        return (*self.found[:-1], self.found[-1]._replace(answer=True))

    def _add(self, operator: Operator) -> int:
        self.found.append(operator)
        return len(self.found) - 1


def mixed() -> Profile:
    """Norm, depthwise, a residual sum, grouped and transposed convolutions, a concat, and a flattened head."""
    layers = (
        layer("stem", "conv", (3, 24), 3, (16, 16), "stem"),
        layer("norm", "norm", (24, 24), 1, (16, 16), "stem", (Feed("stem"),)),
        layer("wide", "depthwise", (24, 24), 3, (16, 8), "stem", (Feed("stem"),), groups=24),
        layer("block.a", "conv", (24, 40), 3, (8, 8), "block.a", (Feed("stem"),), bias=True),
        layer("block.b", "conv", (40, 24), 1, (8, 8), "stem", (Feed("block.a"),)),
        layer("thin", "conv", (24, 32), 3, (8, 8), "thin", (Feed("stem"),), groups=4),
        layer("up", "conv_transpose", (32, 20), 2, (8, 16), "up", (Feed("thin"),), bias=True),
        layer("joined", "conv", (60, 36), 3, (8, 8), "joined", (Feed("block.a"), Feed("up"))),
        layer("head", "linear", (36 * 16, 10), 1, (1, 1), "head", (Feed("joined", 16),), bias=True),
    )
    groups = (
        Group("stem", 24, ("stem", "wide", "block.b")),
        Group("block.a", 40, ("block.a",)),
        Group("thin", 32, ("thin",), "thin is a grouped convolution (4 groups of equal size)."),
        Group("up", 20, ("up",)),
        Group("joined", 36, ("joined",)),
        Group("head", 10, ("head",), "Its channels are the model's answer: one for each class."),
    )
    rows, flow = {x.name: x for x in layers}, Flow(3 * 16**2 * 4)
    wide = flow.act(
        flow.layer("Conv", rows["wide"], flow.act(flow.layer("Conv", rows["stem"], 0), "HardSwish")), "Clip"
    )
    inner = flow.act(flow.layer("Conv", rows["block.a"], wide))
    total = flow.act(flow.add(flow.layer("Conv", rows["block.b"], inner), wide), "PRelu")
    up = flow.layer("ConvTranspose", rows["up"], flow.layer("Conv", rows["thin"], total))
    joined = flow.layer("Conv", rows["joined"], flow.join(inner, up))
    flow.layer("Gemm", rows["head"], flow.act(flow.shrink(joined, "MaxPool", 4), "Flatten"))
    return whole(layers, groups, flow)


def resnet(blocks: int) -> Profile:
    """A CIFAR ResNet of 6 · blocks + 2 layers: 3 gives ResNet-20, 9 gives ResNet-56."""
    layers, members = [layer("conv1", "conv", (3, 16), 3, (32, 32), "conv1")], {"conv1": ["conv1"]}
    stream, width, side = "conv1", 16, 32
    flow = Flow(3 * 32**2 * 4)
    at = flow.act(flow.layer("Conv", layers[0], 0))
    branches: dict[str, tuple[str, ...]] = {}
    for stage, (out, after) in enumerate(((16, 32), (32, 16), (64, 8)), 1):
        for block in range(blocks):
            name, into = f"layer{stage}.{block}", stream
            first, second = f"{name}.conv1", f"{name}.conv2"
            layers.append(layer(first, "conv", (width, out), 3, (side, after), first, (Feed(into),)))
            if width != out:
                stream = f"{name}.downsample"
                layers.append(layer(stream, "conv", (width, out), 1, (side, after), stream, (Feed(into),)))
                members[stream] = [stream]
            layers.append(layer(second, "conv", (out, out), 3, (after, after), stream, (Feed(first),)))
            at = _block(flow, layers, at, width != out)
            members[first], branches[first] = [first], (first, second)
            members[stream].append(second)
            width, side = out, after
    layers.append(layer("fc", "linear", (64, 10), 1, (1, 1), "fc", (Feed(stream),), bias=True))
    flow.layer("Gemm", layers[-1], flow.shrink(at, "ReduceMean", 64))
    channels = {x.name: x.out_channels for x in layers}
    groups = [Group(name, channels[name], tuple(n), branch=branches.get(name, ())) for name, n in members.items()]
    answer = Group("fc", 10, ("fc",), "Its channels are the model's answer: one for each class.")
    return whole(tuple(layers), (*groups, answer), flow)


def _block(flow: Flow, layers: list[Layer], at: int, projected: bool) -> int:
    """A residual block whose layers are the last ones."""
    first, second = layers[-3 if projected else -2], layers[-1]
    inner = flow.layer("Conv", second, flow.act(flow.layer("Conv", first, at)))
    return flow.act(flow.add(inner, flow.layer("Conv", layers[-2], at) if projected else at))
