"""Name of a sample → its network, with or without the trained weights."""

from __future__ import annotations

from collections.abc import Callable

from safetensors.torch import load_file
from torch import nn

from core.errors import ModelError
from sample_models import weights_file
from sample_models.cifar_resnet import CifarResNet
from sample_models.lenet import LeNet
from sample_models.mobilenet import SmallMobileNet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shapes_resnet20": lambda: CifarResNet(20),
    "shapes_mobilenet": SmallMobileNet,
    "digits_lenet": LeNet,
    "cifar10_resnet20": lambda: CifarResNet(20),
}


def build(name: str) -> nn.Module:
    """The sample `name` with its trained weights, in evaluation mode. Raises ModelError for an unknown name."""
    if name not in NETWORKS or not weights_file(name).exists():
        known = ", ".join(n for n in NETWORKS if weights_file(n).exists())
        raise ModelError(f"There is no sample model {name!r}; accepted are {known}.")
    module = NETWORKS[name]()
    module.load_state_dict(load_file(weights_file(name)))
    return module.eval()
