"""ONNX Runtime, opened the same way everywhere: on the processor, in order, all graph optimizations on.

A session does not spin while it waits: a spinning thread would take the processor from the other model it is timed
against.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from core.errors import ModelError

Session = Any  # onnxruntime.InferenceSession, which comes without types


def open_file(file: Path | bytes, threads: int | None = None, *, optimize: bool = True) -> Session:
    """A session with `threads` threads (None: all processors). Raises ModelError when the file cannot be run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or all_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = file if isinstance(file, bytes) else str(file)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a different class for each way a file can be wrong
        name = "The model" if isinstance(file, bytes) else file.name
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(f"{name} cannot be run by ONNX Runtime: {reason.rstrip('.')}.") from error


def run(session: Session, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """First output for x (n, c, h, w). A file with a fixed batch size is run as often as it takes."""
    source = session.get_inputs()[0]
    fixed = source.shape[0] if source.shape and isinstance(source.shape[0], int) else None
    if fixed is None or fixed == len(x):
        return np.asarray(session.run(None, {source.name: x})[0], np.float32)
    padded = np.concatenate([x, np.zeros((-len(x) % fixed, *x.shape[1:]), x.dtype)])
    parts = [session.run(None, {source.name: padded[i : i + fixed]})[0] for i in range(0, len(padded), fixed)]
    return np.asarray(np.concatenate(parts)[: len(x)], np.float32)


def all_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
