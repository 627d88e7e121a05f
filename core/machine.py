"""Which machine and runtime a time was measured on: times of another one say nothing here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path


def processor(cpu: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, where the system tells it."""
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_id() -> str:
    """8 hex digits for this processor with this runtime, the same in every process; no runtime is imported for it."""
    text = f"{platform.system()} {platform.machine()} {processor()} {_runtime()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@cache  # read from the package's records, which takes 3 ms
def _runtime() -> str:
    return importlib.metadata.version("onnxruntime")
