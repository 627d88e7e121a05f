"""Weights files that hold code, lie about their size, are cut off or are something else: each gets its sentence."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.engine.formats.weights_reader import is_weights, read_weights
from core.errors import ModelError


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, ("executed",)


def harmful(path: Path) -> None:
    torch.save({"w": torch.zeros(2), "x": Harmful()}, path)


def whole_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def bomb(path: Path) -> None:
    """Sixteen stored bytes that describe a terabyte."""
    torch.save({"w": torch.zeros(4).as_strided((2**20, 2**18), (0, 0))}, path)


def cut_off(path: Path) -> None:
    torch.save({"w": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:600])


def cut_off_safetensors(path: Path) -> None:
    save_file({"w": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:200])


def unpacks(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(2**24))


def archive_of_images(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", b"")


def numbers(path: Path) -> None:
    torch.save({"accuracy": 0.9, "names": ["a"]}, path)


BAD: dict[Callable[[Path], None], str] = {
    harmful: r"needs posix\.mkdir to be opened, which could run code; accepted are a state dict",
    whole_module: r"needs torch\.nn\.modules\.linear\.Linear to be opened",
    bomb: "describes tensors larger than the file itself",
    cut_off: "damaged or cut off",
    cut_off_safetensors: "cannot be read as safetensors",
    unpacks: "unpacks to far more than it holds",
    archive_of_images: "zip archive without PyTorch weights",
    numbers: "holds no state dict, but keys 'accuracy', 'names'",
    lambda path: path.write_bytes(pickle.dumps([1, 2], protocol=2)) and None: "cannot be read as weights|no state dict",
    lambda path: torch.jit.script(nn.Linear(2, 2)).save(path): "TorchScript program",
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_weights_files(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    make(path)
    assert is_weights(path)
    with pytest.raises(ModelError, match=BAD[make]) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
