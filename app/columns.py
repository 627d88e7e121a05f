"""How the tables of layers and candidates are drawn: units in the headings, bars for shares of a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

Row = dict[str, object]


def layers(rows: Sequence[Row]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Data and column settings of the layer table; columns that nothing was measured for are left out."""
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    bars = {
        "Parameters": _bar("Parameters", "compact", frame, "Learned numbers of the layer."),
        "MACs": _bar("MACs (millions)", "%.2f", frame, "Multiply-accumulates for one image."),
        "Activations": _bar("Output (kB)", "%.1f", frame, "Memory of the layer's output for one image, 32-bit floats."),
        "Latency": _bar("Latency (ms)", "%.3f", frame, "Median time in ONNX Runtime, batch 1, 1 thread."),
    }
    texts = {
        "Layer": st.column_config.TextColumn("Layer", pinned=True),
        "Channels": st.column_config.TextColumn("Channels", help="In → out."),
        "Output": st.column_config.TextColumn("Output shape", help="Channels × height × width."),
    }
    return frame, texts | {name: bar for name, bar in bars.items() if name in frame}


def candidates(rows: Sequence[Row]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Data and column settings of the candidate table. The id stays in the data, as the index, and out of sight."""
    number = st.column_config.NumberColumn
    return pd.DataFrame(rows).set_index("id").dropna(axis="columns", how="all"), {
        "id": None,
        "Recipe": st.column_config.TextColumn("Recipe", pinned=True, width=240),
        "Accuracy": number("Accuracy (%)", format="%.2f", help="Top-1 on the test images."),
        "95 % interval": st.column_config.TextColumn("95 % interval (%)"),
        "Agreement": number("Agreement (%)", format="%.2f", help="Images on which it answers as the original does."),
        "Size": number("File size (MB)", format="%.3f"),
        "Parameters": number("Parameters (thousands)", format="%.1f"),
        "MACs": number("MACs (millions)", format="%.2f"),
        "Latency": number("Latency (ms)", format="%.3f", help="Batch 1, 1 thread, median."),
        "Speed": number("Speed-up", format="%.2f×", help="Original's time / its time, interleaved runs, median."),
        "Took": st.column_config.TextColumn("Took", help="From start to verified result."),
    }


def _bar(title: str, format: str, frame: pd.DataFrame, help: str) -> Any:
    title_of = title.split(" (")[0]
    key = {"Output": "Activations"}.get(title_of, title_of)
    top = float(frame[key].max()) if key in frame else 1.0
    return st.column_config.ProgressColumn(title, format=format, min_value=0.0, max_value=max(top, 1e-9), help=help)
