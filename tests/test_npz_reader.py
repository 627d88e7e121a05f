"""Layouts of .npz that open, and files that are damaged, hostile or mistaken: each gets its sentence."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine.formats.npz_reader import Found, read_npz
from core.errors import DataError, StudioError
from tests.shared_data import shared

X = np.random.default_rng(0).integers(0, 256, (24, 5, 6, 3), dtype=np.uint8)
Y = np.arange(24) % 3


def written(folder: Path, **arrays: Any) -> Path:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return path


def raw_npz(folder: Path, **members: bytes) -> Path:
    path = folder / "raw.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": X, "y": Y}, X),
        ({"x": X, "y": Y[:, None].astype(np.uint8)}, X),
        ({"x": X.transpose(0, 3, 1, 2), "y": Y}, X),  # channels first
        ({"x": X[..., 0], "y": Y}, X[..., :1]),  # grey
        ({"x": X[:, None, :, :, 0], "y": Y}, X[..., :1]),  # grey, channels first
        ({"x": X / 255, "y": Y}, X),  # 0.0 to 1.0
        ({"x": (X / 255).astype(np.float32), "y": Y}, X),
        ({"x": X.astype(np.float64), "y": Y}, X),  # 0.0 to 255.0
        ({"x": X.astype(np.int64), "y": Y}, X),
        ({"x": X > 99, "y": Y}, np.where(X > 99, 255, 0)),
        ({"images": X, "labels": Y}, X),
    ],
)
def test_layouts(tmp_path: Path, arrays: dict[str, Any], expected: np.ndarray) -> None:
    found = read_npz(written(tmp_path, **arrays))
    assert found.pool.x.dtype == np.uint8
    np.testing.assert_array_equal(found.pool.x, expected)
    np.testing.assert_array_equal(found.pool.y, Y)
    assert found.test is None
    assert found.classes == ("0", "1", "2")


def test_parts_and_names(tmp_path: Path) -> None:
    """Validation joins the pool, test stays apart, names are kept."""
    path = written(
        tmp_path, train_images=X, train_labels=Y, val_images=X[:4], val_labels=Y[:4],
        test_images=X[4:9], test_labels=Y[4:9], classes=np.array(["ant", "bee", "çat"]), unknown=np.zeros(3),
    )  # fmt: skip
    found = read_npz(path)
    np.testing.assert_array_equal(found.pool.x, np.concatenate([X, X[:4]]))
    np.testing.assert_array_equal(found.pool.y, np.concatenate([Y, Y[:4]]))  # type: ignore[arg-type]
    assert found.test is not None
    np.testing.assert_array_equal(found.test.y, Y[4:9])
    assert found.classes == ("ant", "bee", "çat")


def test_without_labels(tmp_path: Path) -> None:
    found = read_npz(written(tmp_path, x=X))
    assert found.pool.y is None
    assert found.classes == ()


def test_medical_images() -> None:
    """MedMNIST's own layout: 3882 + 524 chest X-rays in the pool, 624 in the test part."""
    found = read_npz(shared("pneumonia_mnist.npz"))
    assert found.test is not None
    assert (len(found.pool), len(found.test), found.pool.x.shape[1:], found.classes) == (
        4406,
        624,
        (28, 28, 1),
        ("0", "1"),
    )


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X, "y": Y[:-1]}, "y has 23 labels for 24 images; accepted is one label per image"),
        ({"x": X, "y": Y - 1}, "y has labels from -1 to 1; accepted are 0 to 9999"),
        ({"x": X, "y": Y + 10**9}, "accepted are 0 to 9999"),
        ({"x": X, "y": Y / 2}, "y is float64 of shape (24,); accepted is one whole number per image"),
        ({"x": X, "y": np.eye(24, 3, dtype=int)}, "y is int64 of shape (24, 3)"),
        ({"x": X[None]}, "accepted are (n, height, width) for grey"),
        ({"x": X[0, 0]}, "x has shape (6, 3)"),
        ({"x": np.zeros((24, 5, 6, 4), np.uint8)}, "x has shape (24, 5, 6, 4)"),
        ({"x": np.zeros((2, 4000, 1), np.uint8)}, "sides of 1 to 1024 pixels"),
        ({"x": X - 300.0}, "accepted are 0 to 255, or 0.0 to 1.0"),
        ({"x": np.full((24, 5, 6), np.nan)}, "x has values from nan to nan"),
        ({"x": X * 1j}, "x.npy holds complex128 values"),
        ({"x": X.astype("U3")}, "x holds <U3 values"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, "classes has 2 names, but the labels go up to 2"),
        ({"x": X, "y": Y, "classes": np.arange(3)}, "accepted is one text per class"),
        ({"pictures": X}, "mine.npz holds pictures; accepted are x and y"),
        ({"y": Y}, "mine.npz holds y; accepted are x and y"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, 1:], "y_test": Y}, "The test images differ from the training"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "The test images differ from the training"),
        ({"x": np.array([{}, []], object)}, "x.npy holds object values"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_npz(written(tmp_path, **arrays))


PICKLE = "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n"
BOMB = "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 1000, 1000, 3), }\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (npy_header(BOMB), "x.npy says it has 300000000000 bytes, but"),
        (npy_header("__import__('os').system('true')\n"), "cannot be read as .npz"),
        (npy_header(PICKLE) + b"cos\nsystem\n", "holds object values"),
        (npy_header("{'descr': ('<u1', 'fortran_order': False, 'shape': (2,), }\n"), "cannot be read as .npz"),
        (npy_header("{'descr': (\n"), "cannot be read as .npz"),
        (b"not an array", "cannot be read as .npz"),
        (b"\x93NUMPY\x09\x00", "array format (9, 0) is not known"),
        (b"", "cannot be read as .npz"),
    ],
)  # fmt: skip
def test_hostile_arrays(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_npz(raw_npz(tmp_path, x=content))


def test_size_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, x=X, y=Y)
    monkeypatch.setattr("core.engine.formats.npz_reader.MAX_BYTES", 1000)
    monkeypatch.setattr(
        "core.engine.formats.npz_reader._read", lambda *_: pytest.fail("read before the sizes were checked")
    )
    with pytest.raises(DataError, match=r"mine\.npz unpacks to 0\.0 GB; accepted are up to"):
        read_npz(path)


def test_truncated_and_other_files(tmp_path: Path) -> None:
    whole = written(tmp_path, x=X, y=Y).read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2], b"\x80\x04N."):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.npz cannot be read as \.npz"):
            read_npz(path)


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    packed=st.booleans(),
)
@settings(max_examples=200)
def test_any_damage_is_a_sentence_or_harmless(
    tmp_path_factory: Any, changes: list[tuple[int, int]], packed: bool
) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, x=X[:, :2, :2, 0], y=Y, classes=np.array(["a", "b", "c"]))
    content = bytearray(buffer.getvalue())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    sentence = "accepted"
    try:
        assert isinstance(read_npz(path), Found)
    except StudioError as error:
        sentence = str(error)
    assert "accepted" in sentence
