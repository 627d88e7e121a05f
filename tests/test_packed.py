"""Packed models: sparse and integer weights shrink, dense ones are left alone, and nothing is lost."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from core.engine.formats.packed import pack


def write(path: Path, values: np.ndarray) -> Path:
    path.write_bytes(b"header" + values.tobytes())
    return path


def test_dense_floats_are_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "model.onnx", np.random.default_rng(0).standard_normal(200_000).astype(np.float32))
    assert pack(file) is None
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("share", "most"), [(0.8, 0.35), (0.95, 0.12)])
def test_zeros_are_saved(tmp_path: Path, share: float, most: float) -> None:
    """Near the entropy bound: a bit mask and the surviving values, which hardly shrink."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(200_000) < share, 0, rng.standard_normal(200_000)).astype(np.float32)
    file = write(tmp_path / "model.onnx", values)
    size = pack(file)
    assert size is not None
    assert size < most * file.stat().st_size
    packed = tmp_path / "model.onnx.xz"
    assert packed.stat().st_size == size
    assert lzma.decompress(packed.read_bytes()) == file.read_bytes()
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "model.onnx.xz"}


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-3, 4, 50_000).astype(np.int8)
    sizes = {pack(write(tmp_path / name, values)) for name in ("a.onnx", "b.onnx")}
    assert len(sizes) == 1
    assert (tmp_path / "a.onnx.xz").read_bytes() == (tmp_path / "b.onnx.xz").read_bytes()
