"""A model's key figures as cards: label, number with its unit, the badge that says how it was obtained."""

from __future__ import annotations

from base64 import b64encode

import streamlit as st

from app.tables import BADGES, badge_of, count, interval, milliseconds, percent, size
from core.candidate import Scores
from core.layers import Profile


def badge(word: str) -> None:
    """'exact', 'measured', 'verified' or 'predicted', always in the same colours."""
    colour, icon, help = BADGES[word]
    st.badge(word, color=colour, icon=icon, help=help)  # type: ignore[arg-type]


def inline_badge(word: str) -> str:
    """The same within a line of Markdown."""
    colour, icon, _ = BADGES[word]
    return f":{colour}-badge[{icon} {word}]"


def show_figure(label: str, value: str, word: str, detail: str, help: str = "") -> None:
    """One card. `detail` says what the number is of; `help` explains the term."""
    with st.container(border=True, height="stretch", gap="small"):
        st.metric(label, value, help=help or None)
        badge(word)
        st.caption(detail)


PEAK = "The largest sum of tensors alive at once when operators run in the file's order. Weights are not in it."


def show_figures(profile: Profile, scores: Scores | None) -> None:
    """The figures a model is known by. Accuracy waits for labelled data."""
    with st.grid(6, min_column_width=130):
        _show_accuracy(scores)
        show_figure(
            "Parameters", count(profile.params), "exact", "counted over all layers", "Numbers the model has learned."
        )
        show_figure(
            "MACs",
            count(profile.macs),
            "exact",
            "for one image",
            "Multiply-accumulate operations: one multiplication and one addition count as one MAC.",
        )
        show_figure("File size", size(profile.file_bytes), "exact", "the ONNX file", "1 MB is 1,000,000 bytes.")
        show_figure("Peak memory", size(profile.peak_bytes), "exact", "activations, one image", PEAK)
        if profile.latency_ms is not None:
            show_figure(
                "Latency",
                milliseconds(profile.latency_ms),
                "measured",
                "batch 1, 1 thread, this computer",
                "Median time for one image in ONNX Runtime.",
            )


def _show_accuracy(scores: Scores | None) -> None:
    help = "Top-1: the share of images whose highest answer is the right one."
    if scores is None or scores.accuracy is None:
        with st.container(border=True, height="stretch", gap="small"):
            st.metric("Accuracy", "–", help=help)
            st.caption("needs labelled data" if scores else "not measured on any data yet")
        return
    show_figure("Accuracy", percent(scores.accuracy.value), badge_of(scores), interval(scores.accuracy), help)


def inline(picture: bytes) -> str:
    """A PNG as an address that holds it: one by itself is gone when a page is left before the browser asks for it."""
    return f"data:image/png;base64,{b64encode(picture).decode()}"
