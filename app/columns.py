"""The columns of the studio's tables: units in the headings, bars for shares of a whole."""

from __future__ import annotations

from app.components.data_table import Column
from app.tables import count, duration, size, times

LAYERS = (
    Column("Layer"),
    Column("Kind"),
    Column("Channels", help="In → out."),
    Column("Kernel"),
    Column("Output", "Output shape", "Channels × height × width."),
    Column("Parameters", help="Learned numbers of the layer.", words=count, bar=True),
    Column("MACs", "MACs (millions)", "Multiply-accumulates for one image.", "{:.2f}".format, bar=True),
    Column("Activations", "Output (kB)", "Memory of its output, one image, 32-bit floats.", "{:.1f}".format, bar=True),
    Column("Latency", "Latency (ms)", "Median in ONNX Runtime, batch 1, 1 thread.", "{:.3f}".format, bar=True),
)
CANDIDATES = (
    Column("Recipe"),
    Column("Accuracy", "Accuracy (%)", "Top-1 on the test images.", "{:.2f}".format),
    Column("95 % interval", "95 % interval (%)"),
    Column("Agreement", "Agreement (%)", "Images on which it answers as the original does.", "{:.2f}".format),
    Column("Size", "File size (MB)", words="{:.3f}".format),
    Column("Parameters", "Parameters (thousands)", words="{:.1f}".format),
    Column("MACs", "MACs (millions)", words="{:.2f}".format),
    Column("Peak memory", "Peak memory (kB)", "Of activations, one image.", "{:.1f}".format),
    Column("Latency", "Latency (ms)", "Batch 1, 1 thread, median.", "{:.3f}".format),
    Column("Speed", "Speed-up", "Original's time / its time, interleaved runs, median.", "{:.2f}×".format),
    Column("Took", help="From start to verified result.", words=duration),
)
TIMES = (
    Column("Setting"),
    Column("Original", "Original (ms)", words="{:.3f}".format),
    Column("Candidate", "Candidate (ms)", words="{:.3f}".format),
    Column("Faster", "Times faster", words="{:.2f}×".format),
    Column("Spread", "Spread (10–90 %)"),
    Column("Runs", words=str),
)
SKIPPED = (Column("Step"), Column("Layer"), Column("Reason"))
TRIALS = (
    Column("Recipe"),
    Column("Points lost", words="{:.2f}".format),
    Column("Size", words=size),
    Column("MACs", words=count),
    Column("Speed", words=times),
    Column("Result"),
)
FILES = (Column("File"), Column("Size", words=size), Column("Bytes", words="{:,}".format), Column("What"))
