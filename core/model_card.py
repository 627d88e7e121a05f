"""The model card of a bundle, as Markdown: what the file is, how to use it, what was measured and how.

Model Cards for Model Reporting, Mitchell et al. 2019.
"""

from __future__ import annotations

from core.candidate import Candidate, Latency, Scores, Share
from core.cards import DataCard, ModelCard
from core.compare import setting


def write_card(made: Candidate, card: ModelCard, data: DataCard, original: Scores | None) -> str:
    """The card as Markdown."""
    rows = [
        ("Accuracy (top-1)", _share(made.scores.accuracy), _share(original.accuracy if original else None)),
        ("Agreement with the original", _share(made.scores.agreement), "100 %"),
        ("File size", f"{made.scores.size_bytes:,} bytes", f"{original.size_bytes:,} bytes" if original else "–"),
        *([("Compressed (xz)", f"{made.scores.packed_bytes:,} bytes", "–")] if made.scores.packed_bytes else []),
        ("Parameters", f"{made.scores.params:,}", f"{original.params:,}" if original else "–"),
        ("MACs", f"{made.scores.macs:,}", f"{original.macs:,}" if original else "–"),
        (
            "Peak activation memory",
            f"{made.scores.peak_bytes:,} bytes",
            f"{original.peak_bytes:,} bytes" if original else "–",
        ),
        *((f"Latency, {setting(row)}", _speed(row), f"{row.original_ms:.3g} ms") for row in made.scores.latency),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [("", "this model", "original"), ("---",) * 3, *rows])
    skipped = "\n".join(f"- {s.technique}, `{s.layer}`: {s.reason}" for s in made.skipped) or "Nothing."
    how = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in made.provenance.items())
    return CARD.format(
        title=card.title, recipe=made.title, data=data.title, test=data.test, table=table, shape=card.input_shape,
        mean=card.mean, std=card.std, classes=", ".join(card.classes), skipped=skipped, how=how,
        source=card.source or "not stated", licence=card.licence or "not stated", verified=_how(made.scores),
        caution=f"\n\n{made.caution}" if made.caution else "",
    )  # fmt: skip


def _share(share: Share | None) -> str:
    return "–" if share is None else f"{share.value:.2%} (95 % interval {share.low:.2%} to {share.high:.2%})"


def _speed(row: Latency) -> str:
    return f"{row.latency_ms:.3g} ms, {row.speedup:.2f}× the speed ({row.speedup_low:.2f} to {row.speedup_high:.2f})"


def _how(scores: Scores) -> str:
    return "verified: measured on this very file with all test images" if scores.verified else "measured on a sample"


CARD = """# {title}, {recipe}

Made with CNN Studio from *{title}*. Source: {source}. Licence: {licence}.

## Scores

On {test:,} test images of {data}; {verified}. Latency is a median of interleaved runs on the machine named below.

{table}

## Use

Input `(n, {shape[0]}, {shape[1]}, {shape[2]})` float32: `(pixels / 255 - mean) / std`, mean {mean}, std {std}.
Output: one score per class, in this order: {classes}.

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
pixels = np.load("samples.npz")["images"]  # (n, height, width, channels) uint8
x = ((pixels / np.float32(255) - {mean}) / {std}).astype("float32").transpose(0, 3, 1, 2)
print(session.run(None, {{session.get_inputs()[0].name: x}})[0].argmax(1))
```

`python verify.py` checks the file, its answers and, where the test images are included, its accuracy.{caution}

## Left as it was

{skipped}

## How it was made

`cnn-studio run recipe.yaml --model … --data … --out …` makes it again.

{how}
"""
