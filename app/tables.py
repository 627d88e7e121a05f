"""Records → words with units. Numbers stay in the core; how they read on a page is decided here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.titles import titles
from core.candidate import Candidate, Latency, Scores, Share
from core.layers import Profile

BADGES = {  # word → (colour, icon, what it says about a number)
    "predicted": ("violet", ":material/insights:", "Estimated from tables; nothing was run."),
    "exact": ("gray", ":material/tag:", "Counted in the model or the file; nothing is estimated."),
    "measured": ("blue", ":material/straighten:", "Timed on this computer, or measured on a sample of the images."),
    "verified": ("green", ":material/verified:", "Measured on the file you download, with every test image."),
}


def count(value: float, unit: str = "") -> str:
    """272474 → '272 k'; 40813184 → '40.8 M'.

    >>> count(272474), count(40813184, "MACs"), count(61)
    ('272 k', '40.8 M MACs', '61')
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{three(value / size)} {prefix}{' ' * bool(unit)}{unit}"
    return f"{value:,.0f}{' ' * bool(unit)}{unit}"


def size(value: float) -> str:
    """Bytes in decimal units, as download dialogs show them.

    >>> size(1092616), size(532), size(0)
    ('1.09 MB', '532 B', '0 B')
    """
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{three(value / scale)} {unit}"
    return f"{value:.0f} B"


def three(value: float) -> str:
    """Three significant digits without an exponent.

    >>> three(1.0926), three(40.81), three(272.4), three(0.4567)
    ('1.09', '40.8', '272', '0.457')
    """
    if value == 0:
        return "0"
    digits = 2
    while digits and abs(value) >= 10 ** (3 - digits):
        digits -= 1
    return f"{value:.{digits}f}" if abs(value) >= 1 else f"{value:.3g}"


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def interval(share: Share) -> str:
    """'91.2–92.3 %, 95 % interval, 10,000 images'."""
    return f"{100 * share.low:.1f}–{100 * share.high:.1f} %, 95 % interval, {share.count:,} images"


def milliseconds(value: float) -> str:
    return f"{three(value)} ms"


def times(value: float) -> str:
    """A factor: '1.85×'."""
    return f"{three(value)}×"


def duration(seconds: float) -> str:
    """In the words a person uses for waiting.

    >>> duration(4.2), duration(75), duration(3720)
    ('4 s', '1 min 15 s', '1 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plain(text: str) -> str:
    """User text (names, messages) with Markdown's special characters taken literally."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#$~|:" else c for c in text)


def badge_of(scores: Scores) -> str:
    """The word for accuracy and agreement."""
    return "verified" if scores.verified else "measured"


def latency_of(scores: Scores, batch: int = 1, threads: int = 1) -> Latency | None:
    """The setting asked for, or the first one measured."""
    exact = (row for row in scores.latency if (row.batch, row.threads) == (batch, threads))
    return next(exact, next(iter(scores.latency), None))


def gains(scores: Scores, original: Scores | None) -> str:
    """'1.95× as fast (batch 1, 1 thread), 3.5× smaller, 0.25 points of accuracy lost, …', against the original."""
    words, row = [], latency_of(scores)
    if row:
        words.append(f"{times(row.speedup)} as fast (batch {row.batch}, {row.threads} thread)")
    if original:
        words.append(f"{times(original.size_bytes / scores.size_bytes)} smaller")
    if original and original.accuracy and scores.accuracy:
        points = 100 * (original.accuracy.value - scores.accuracy.value)
        words.append(f"{abs(points):.2f} points of accuracy {'lost' if points >= 0 else 'won'}")
    words.append(f"{percent(scores.agreement.value)} agreement on {scores.agreement.count:,} test images")
    return ", ".join(words)


def candidate_rows(candidates: dict[str, Candidate]) -> list[dict[str, object]]:
    """One row per candidate, for the Runs table. Shares are percentages here."""
    named = titles(candidates)
    return [_candidate_row(candidate, named[name]) for name, candidate in candidates.items()]


def _candidate_row(candidate: Candidate, title: str) -> dict[str, object]:
    scores, latency = candidate.scores, latency_of(candidate.scores)
    return {
        "id": candidate.id,
        "Recipe": title,
        "Accuracy": None if scores.accuracy is None else 100 * scores.accuracy.value,
        "95 % interval": None if scores.accuracy is None else _range(scores.accuracy),
        "Agreement": 100 * scores.agreement.value,
        "Size": scores.size_bytes / 1e6,
        "Parameters": scores.params / 1e3,
        "MACs": scores.macs / 1e6,
        "Peak memory": scores.peak_bytes / 1e3,
        "Latency": latency.latency_ms if latency else None,
        "Speed": latency.speedup if latency else None,
        "Took": candidate.seconds,
    }


def _range(share: Share) -> str:
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}"


def trial_rows(trials: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """Each trial of a search with its words: recipe, points lost, size, MACs, speed."""
    return [
        (
            row,
            (
                ("* " if row["kept"] else "") + row["title"],
                f"{100 * row['loss']:.2f}" if row["size_bytes"] else "–",
                size(row["size_bytes"]) if row["size_bytes"] else "–",
                count(row["macs"]) if row["size_bytes"] else "–",
                times(row["speedup"]) if row["speedup"] else "–",
            ),
        )
        for row in trials
    ]


KINDS = {
    "conv": "Convolution",
    "depthwise": "Depthwise convolution",
    "conv_transpose": "Transposed convolution",
    "linear": "Linear",
    "norm": "Normalization",
    "other": "Other",
}


def layer_rows(profile: Profile) -> list[dict[str, object]]:
    """One row per layer, for the table on Inspect."""
    return [
        {
            "Layer": layer.name,
            "Kind": KINDS.get(layer.kind, layer.kind),
            "Channels": f"{layer.in_channels} → {layer.out_channels}",
            "Kernel": "" if layer.kind in ("linear", "norm") else "×".join(map(str, layer.kernel)),
            "Output": "×".join(map(str, layer.output_shape)),
            "Parameters": layer.params,
            "MACs": layer.macs / 1e6,
            "Activations": layer.activation_bytes / 1e3,
            "Latency": layer.latency_ms,
        }
        for layer in profile.layers
    ]
