"""Zips of class folders that open, and entries that are damaged, hostile or out of place: each gets its sentence."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.engine.formats.npz_reader import Found
from core.engine.formats.zip_reader import read_zip
from core.errors import DataError, StudioError


def picture(shade: int = 100, size: tuple[int, int] = (8, 6), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An encoded picture of one shade. `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade // 2, 0)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def zipped(folder: Path, entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "mine.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def class_folders(count: int = 12) -> dict[str, bytes]:
    return {f"{'cat' if i % 2 else 'ant'}/{i:02}.png": picture(i) for i in range(count)}


def test_class_folders(tmp_path: Path) -> None:
    found = read_zip(zipped(tmp_path, class_folders()))
    assert found.classes == ("ant", "cat")
    assert found.test is None
    assert found.pool.x.shape == (12, 6, 8, 3)
    assert found.pool.x[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert found.pool.y is not None
    assert found.pool.y.tolist() == [0] * 6 + [1] * 6


def test_train_and_test_folders(tmp_path: Path) -> None:
    """Below one common folder; validation joins the pool; leftovers of other programs are passed over."""
    entries = {
        "set/train/b/1.png": picture(1), "set/train/a/2.PNG": picture(2), "set/val/a/3.png": picture(3),
        "set/test/b/4.png": picture(4), "set/readme.txt": b"hello", "__MACOSX/set/train/a/._2.png": b"fork",
        "set/train/a/.DS_Store": b"", "../../escape/a.png": b"", "set/train/a/Thumbs.db": b"",
    }  # fmt: skip
    found = read_zip(zipped(tmp_path, entries))
    assert found.classes == ("a", "b")
    assert found.test is not None
    assert found.pool.x[:, 0, 0, 0].tolist() == [2, 1, 3]
    assert found.pool.y is not None
    assert found.pool.y.tolist() == [0, 1, 0]
    assert found.test.x[0, 0, 0, 0] == 4
    assert found.test.y is not None
    assert found.test.y.tolist() == [1]


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    found = read_zip(zipped(tmp_path, {"test/1.png": picture(), "other/2.png": picture()}))
    assert found.classes == ("other", "test")
    assert found.test is None


@pytest.mark.parametrize("top", ["", "photos/"])
def test_one_folder_is_no_class(tmp_path: Path, top: str) -> None:
    found = read_zip(zipped(tmp_path, {f"{top}{i}.png": picture(i) for i in range(5)}))
    assert found.pool.y is None
    assert found.classes == ()


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("RGB", "BMP", 3), ("RGB", "WEBP", 3), ("RGB", "JPEG", 3), ("P", "GIF", 3), ("RGBA", "PNG", 3),
     ("CMYK", "JPEG", 3), ("L", "PNG", 1), ("1", "PNG", 1), ("LA", "PNG", 1), ("I;16", "PNG", 1)],
)  # fmt: skip
def test_formats_and_modes(tmp_path: Path, mode: str, kind: str, channels: int) -> None:
    if mode == "I;16":  # the high byte of 51203 is 200, the low byte 3
        buffer = io.BytesIO()
        Image.fromarray(np.full((6, 8), 51203, np.uint16)).save(buffer, "PNG")
        content, expected = buffer.getvalue(), 200
    else:
        content = picture(200, mode=mode, kind=kind)
        expected = 255 if mode == "1" else round(0.299 * 200 + 0.587 * 100) if channels == 1 else 200
    found = read_zip(zipped(tmp_path, {"a/1.png": content, "b/2.png": content}))
    assert found.pool.x.shape == (2, 6, 8, channels)
    if mode != "1":  # dithered
        assert abs(float(found.pool.x[..., 0].mean()) - expected) <= 4


def test_sizes(tmp_path: Path) -> None:
    """The most common size; or the one asked for; or 64×64 when most are large."""
    small = {"a/1.png": picture(), "a/2.png": picture(), "b/3.png": picture(size=(9, 9))}
    assert read_zip(zipped(tmp_path, small)).pool.x.shape == (3, 6, 8, 3)
    assert read_zip(zipped(tmp_path, small), size=(10, 11)).pool.x.shape == (3, 10, 11, 3)
    large = {"a/1.png": picture(size=(300, 20)), "b/2.png": picture(size=(300, 20))}
    assert read_zip(zipped(tmp_path, large)).pool.x.shape == (2, 64, 64, 3)


def test_resize_averages(tmp_path: Path) -> None:
    """A checkerboard of 0 and 200 at an eighth of its size is grey 100, not stripes."""
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
    buffer = io.BytesIO()
    Image.fromarray(board.astype(np.uint8)).save(buffer, "PNG")
    x = read_zip(zipped(tmp_path, {"a/1.png": buffer.getvalue()}), size=(8, 8)).pool.x
    assert x.shape == (1, 8, 8, 1)
    assert np.abs(x.astype(int) - 100).max() <= 2


def encoded(**entries: bytes) -> dict[str, bytes]:
    return {
        "ant/good.png": picture(),
        "bee/good.png": picture(),
        **{k.replace("_", "/"): v for k, v in entries.items()},
    }


PNG = picture(size=(40, 40))
HUGE = PNG[:16] + (6000).to_bytes(4, "big") * 2 + PNG[24:]  # only the header says so
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"ant/bad.png": PNG[:-30]}, "'ant/bad.png' cannot be read as a picture"),
        ({"ant/bad.png": PNG[:20]}, "'ant/bad.png' cannot be read as a picture"),
        ({"ant/bad.png": b""}, "'ant/bad.png' cannot be read as a picture"),
        ({"ant/bad.png": EPS}, "accepted are PNG, JPEG, BMP, GIF, WEBP"),
        ({"ant/bad.png": HUGE}, "cannot be read as a picture"),  # its checksum is wrong as well
        ({"loose.png": PNG}, "'loose.png' of mine.zip is in no class folder, but others are"),
        ({"ant/zeros.bmp": b"BM" + bytes(10**6)}, "'ant/zeros.bmp' unpacks from"),
    ],
)
def test_bad_entries(tmp_path: Path, entries: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_zip(zipped(tmp_path, {**class_folders(), **entries}, zipfile.ZIP_DEFLATED))


def test_pixels_are_capped_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.engine.formats.zip_reader.MAX_PIXELS", 47)
    with pytest.raises(DataError, match=r"'ant/00\.png' has 8×6 pixels; accepted are up to"):
        read_zip(zipped(tmp_path, class_folders()))


def test_caps_on_number_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path, class_folders())
    with monkeypatch.context() as patch:
        patch.setattr("core.engine.formats.zip_reader.MAX_BYTES", 12 * 6 * 8 * 3 - 1)
        with pytest.raises(DataError, match=r"mine\.zip holds 12 pictures, .* accepted are up to"):
            read_zip(path)
        patch.setattr("core.engine.formats.zip_reader.MAX_BYTES", 12 * 60)  # a packed picture is larger
        with pytest.raises(DataError, match=r"mine\.zip unpacks to 0\.0 GB; accepted are up to"):
            read_zip(path)
    monkeypatch.setattr("core.engine.formats.zip_reader.MAX_ENTRIES", 11)
    with pytest.raises(DataError, match="has 12 entries; accepted are up to 11"):
        read_zip(path)


def test_nothing_is_written_and_links_are_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("ant/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    path = zipped(tmp_path, class_folders())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(secret))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"'ant/link\.png' cannot be read as a picture"):
        read_zip(path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"<html>"])
def test_not_a_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.zip cannot be read as a zip"):
        read_zip(path)


def test_empty_name_and_folder_like_a_picture(tmp_path: Path) -> None:
    path = zipped(tmp_path, {**class_folders(), "ant/folder.png/": b"", "X": PNG})
    content = path.read_bytes()
    name = content.rindex(b"X", 0, content.rindex(b"PK\x05\x06"))  # in the directory, 46 bytes into its record
    lengths = name - 46 + 28  # of the name and of the extra field: now no name, and one extra byte
    path.write_bytes(content[:lengths] + b"\x00\x00\x01\x00" + content[lengths + 4 :])
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[-1].filename == ""
    assert len(read_zip(path).pool) == 12


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.zip holds no pictures; accepted are \.bmp"):
        read_zip(zipped(tmp_path, {"a/b.txt": b"", "c/": b""}))


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP"]),
    packed=st.booleans(),
    inside=st.booleans(),
)
@settings(max_examples=200)
def test_any_damage_is_a_sentence_or_harmless(
    tmp_path_factory: Any, changes: list[tuple[int, int]], kind: str, packed: bool, inside: bool
) -> None:
    """Bytes changed anywhere in the zip, or inside one picture whose checksum is then right."""
    damaged = bytearray(picture(kind=kind))
    for place, value in changes if inside else []:
        damaged[place % len(damaged)] = value
    entries = {"a/1.png": picture(1), "b/2.png": picture(2, kind=kind), "b/3.png": bytes(damaged)}
    path = zipped(tmp_path_factory.getbasetemp(), entries, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for place, value in [] if inside else changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    sentence = "accepted"
    try:
        assert isinstance(read_zip(path), Found)
    except StudioError as error:
        sentence = str(error)
    assert "accepted" in sentence
