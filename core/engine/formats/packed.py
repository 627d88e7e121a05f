"""A model compressed for storing and sending: `model.onnx.xz`, which any xz tool and `verify.py` unpack.

Zeros and few distinct values are what pruning and quantization leave in a file; an entropy coder turns them into bytes
saved, as in Deep Compression (Han et al. 2016). Dense float weights hardly shrink, so they are left as they are.
"""

from __future__ import annotations

import lzma
import os
from pathlib import Path

PROBE = 1 << 20  # bytes tried first
WORTH = 0.9  # a smaller share of the size than this is worth a second file


def pack(file: Path) -> int | None:
    """Write `file`.xz beside it and return its size in bytes; None, and nothing written, where it would hardly shrink.

    The same file gives the same bytes.
    """
    content = file.read_bytes()
    start = max(0, (len(content) - PROBE) // 2)
    probe = content[start : start + PROBE]
    if len(_compress(probe)) > WORTH * len(probe):
        return None
    packed = _compress(content)
    part = file.with_name(f"{file.name}.xz.{os.getpid()}.part")
    part.write_bytes(packed)
    os.replace(part, file.with_name(f"{file.name}.xz"))
    return len(packed)


def _compress(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_XZ, preset=6)
