"""Why a layer keeps its channels, or with which others it loses them: the record behind the drawing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from app.why import SHOWN, coupling, obstacle
from core.layers import Group, explain
from tests.profiles import mixed, resnet


def test_a_residual_stream_moves_together() -> None:
    profile = resnet(1)
    found = coupling(profile, profile.layer("layer1.0.conv2"), 8)
    assert found.together.title == "Moves together: 16 channels"
    assert found.together.names == ("conv1", "layer1.0.conv2")
    assert found.reads.names == ("layer1.0.conv1",)
    assert found.readers.names == ("layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample")
    assert found.obstacle == ""
    assert found.said == explain(profile, "layer1.0.conv2", 8)
    json.dumps(asdict(found))


def test_the_first_layer_reads_the_image_and_the_last_is_the_answer() -> None:
    profile = resnet(1)
    assert coupling(profile, profile.layer("layer1.0.conv1"), 8).together.title == "Moves by itself: 16 channels"
    last = coupling(profile, profile.layer("fc"), 8)
    assert (last.obstacle, last.readers.names) == ("Answer", ())
    assert last.reads.names == ("layer3.0.downsample and 1 more",)
    groups = (*profile.groups, Group("input", 3, ()), Group("fc.fixed", 5, ()))
    fed = replace(profile.layer("fc"), inputs=(replace(profile.layer("fc").inputs[0], group="input"),))
    assert coupling(replace(profile, groups=groups), fed, 8).reads.names == ("the image",)


def test_a_grouped_convolution_is_named_as_the_obstacle() -> None:
    profile = mixed()
    found = coupling(profile, profile.layer("thin"), 8)
    assert found.obstacle == "Grouped convolution"
    assert found.readers.names == ("up",)
    assert coupling(profile, profile.layer("head"), 8).reads.names == ("joined",)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("", ""),
        ("Its channels are the model's answer: one for each class.", "Answer"),
        ("Its channels pass through Reshape, which does not keep each one in its place.", "Reshape"),
        ("Its channels pass through LayerNorm (blocks.0.norm), which mixes them.", "LayerNorm"),
        ("Its channels meet constant ones or the model's input in Concat, so their positions are fixed.", "Concat"),
        ("Its channels are lengthened by constant ones (Pad), so their positions are fixed.", "Pad"),
        ("Its channels meet a parameter of their own outside any layer.", "Parameter"),
        ("stem is run 3 times, so its channels have several neighbours.", "Shared layer"),
        ("It does not contribute to the model's answer.", "see below"),
        ("Its channels are only partly coupled to those of conv2.", "see below"),
    ],
)
def test_obstacles_are_named_from_the_engines_sentences(said: str, name: str) -> None:
    assert obstacle(Group("a", 8, ("a",), said)) == name


def test_long_lists_are_cut_but_keep_the_layer_itself() -> None:
    profile = resnet(20)
    stream = profile.group("conv1").layers
    assert len(stream) == 21
    found = coupling(profile, profile.layer(stream[-1]), 8).together.names
    assert len(found) == SHOWN
    assert stream[-1] in found
    assert found[-1] == f"and {21 - (SHOWN - 1)} more"


def test_widths_are_explained_with_the_layers_own_numbers() -> None:
    """70 % of 64 is 44.8; of 16 it is 11.2."""
    profile = resnet(1)
    wide = explain(profile, "layer3.0.conv1", 8)
    assert "from 64 channels to 56, 48, 40, … or 8: widths are multiples of 8" in wide
    assert "would leave 44.8, which becomes 48." in wide
    assert "from 16 channels to 8: widths" in explain(profile, "conv1", 8)
    assert "from 32 channels to 24, 16 or 8: widths" in explain(profile, "layer2.0.conv1", 8)
    assert "to any number down to 1; removing 30 % leaves 45." in explain(profile, "layer3.0.conv1", 1)
