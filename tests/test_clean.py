"""Exact clean-ups of uploaded files: fewer operators and channels, the same answers, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from core.engine.clean import clean
from core.engine.graph import trace
from core.engine.models import open_model
from tests.shared_data import shared

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Parallel(nn.Module):
    """A RepVGG block while it trains: 3×3, 1×1 and identity branches, each with BatchNorm, between two layers."""

    def __init__(self, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.answer = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.large = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
        self.small = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=groups)
        for values in (self.norm.weight, self.norm.running_mean, self.norm.running_var):
            nn.init.uniform_(values, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.answer(torch.relu(self.large(x) + self.small(x) + self.norm(x)).mean((2, 3)))  # type: ignore[no-any-return]


def convolutions(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (1, 2), (3, 8)])
def test_parallel_branches_become_one_convolution(kernel: int, groups: int):
    module = fx.symbolic_trace(Parallel(kernel, groups=groups).eval())
    cleaned, said = clean(module, (3, 16, 16))
    assert convolutions(cleaned) == ["stem", "large"]
    assert said == "On opening, the studio merged 2 parallel branches; its answers are the same."
    torch.testing.assert_close(cleaned(X), module(X), rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """x + b(relu(a(x))), whose two summands read different things."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.answer = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.answer((x + self.b(torch.relu(self.a(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def residual() -> fx.GraphModule:
    return fx.symbolic_trace(Residual().eval())


def test_a_residual_sum_is_no_parallel_branch():
    module = residual()
    assert clean(module, (3, 16, 16)) == (module, "")


def test_channels_that_nothing_reads_go():
    module = residual()
    with torch.no_grad():
        module.b.weight[:, [1, 5, 6]] = 0
    cleaned, said = clean(module, (3, 16, 16))
    assert (cleaned.a.out_channels, cleaned.b.in_channels) == (5, 5)
    assert "removed 3 channels that nothing reads" in said
    torch.testing.assert_close(cleaned(X), module(X), rtol=1e-4, atol=1e-5)
    assert module.a.out_channels == 8


def test_a_channel_that_one_layer_still_reads_stays():
    module = residual()
    with torch.no_grad():
        module.a.weight[:, 2] = 0  # the answer reads channel 2 of the stream as well
    assert clean(module, (3, 16, 16)) == (module, "")


def test_an_uploaded_file_is_cleaned_and_the_file_itself_is_not_touched(tmp_path: Path):
    path = tmp_path / "parallel.onnx"
    program = torch.onnx.export(
        Parallel().eval(), (X[:1],), dynamo=True, verbose=False, dynamic_shapes=[{0: torch.export.Dim("n", min=1)}]
    )
    program.save(path)
    before = path.read_bytes()
    model = open_model({"kind": "file", "path": str(path)})
    assert len(convolutions(model.module)) == 2 < sum(n.op_type == "Conv" for n in onnx.load(path).graph.node)
    assert "merged 2 parallel branches" in model.card.description
    assert path.read_bytes() == before
    np.testing.assert_allclose(model.module(X).detach(), Parallel().eval()(X).detach(), rtol=1e-3, atol=1e-4)


class ChannelsLast(nn.Module):
    """As TensorFlow's converter writes it: what is pooled to (sides) is put channels last and flattened."""

    def __init__(self, sides: tuple[int, int], more: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(sides)
        self.answer, self.more = nn.Linear(8 * sides[0] * sides[1], 5), more

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv(x))).permute(0, 2, 3, 1)
        answer: Tensor = self.answer(x.flatten(1) if self.more == 1 else torch.flatten(x, 1))
        return answer + x.mean() if self.more == 2 else answer


@pytest.mark.parametrize("sides", [(1, 1), (2, 3)])
def test_a_linear_layer_reads_channels_first(sides: tuple[int, int]) -> None:
    """Then its channels can be pruned: pruning by torch-pruning counts on them being flattened in their order."""
    module = fx.symbolic_trace(ChannelsLast(sides).eval())
    cleaned, said = clean(module, (3, 16, 16))
    assert (
        said
        == "On opening, the studio removed the transposition before 1 of its linear layers; its answers are the same."
    )
    assert not [node for node in cleaned.graph.nodes if node.target == "permute"]
    torch.testing.assert_close(cleaned(X), module(X), rtol=1e-4, atol=1e-5)
    assert [group.name for group in trace(module, X[:1]).open] == []
    assert [group.name for group in trace(cleaned, X[:1]).open] == ["conv"]


def test_a_transposition_that_others_read_stays() -> None:
    module = fx.symbolic_trace(ChannelsLast((2, 3), more=2).eval())
    assert clean(module, (3, 16, 16)) == (module, "")


def test_a_public_model_from_keras_can_be_pruned_to_its_last_layer() -> None:
    """Its last stage was closed: "Its channels pass through Transpose"."""
    opened = open_model({"kind": "file", "path": shared("checkpoints/mlperf_resnet8_cifar10.onnx")})
    assert opened.card.probabilities
    assert "transposition" in opened.card.description
    groups = trace(opened.module, torch.zeros(1, 3, 32, 32)).groups
    assert not [group.name for group in groups if group.blocked and "Transpose" in group.blocked]
