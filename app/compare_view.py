"""What the Compare page draws: original and candidate by their numbers, classes, answers, layers and graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app import columns, compare_charts, tables
from app.components.data_table import data_table
from app.components.graph_pair import graph_pair
from app.figures import PEAK, inline, show_figure
from app.netron import LEASES, graph_address
from app.plot import plot
from app.state import State, workspace
from app.titles import titles
from core import compare, pictures
from core.candidate import Candidate, Scores
from core.cards import DataCard, ModelCard
from core.catalog import CATALOG

PER_PAGE = 24  # pictures


@dataclass(frozen=True)
class Pair:
    """Two files that answered the same images. `first` is the original unless another candidate was chosen."""

    model: str
    data: str
    card: ModelCard
    data_card: DataCard
    first: Candidate | None
    first_scores: Scores
    first_title: str
    second: Candidate

    def files(self) -> tuple[Path, Path]:
        """The two ONNX files."""
        folder, space = "candidates" if self.first else "models", workspace()
        first = space.folder(folder, self.first.id if self.first else self.model)
        return first / "model.onnx", space.folder("candidates", self.second.id) / "model.onnx"

    def answers(self) -> compare.Answers:
        """Raises DataError when predictions are missing."""
        space = workspace()
        first = space.folder("models", self.model) / f"baseline-{self.data}.npz"
        if self.first:
            first = space.folder("candidates", self.first.id) / "predictions.npz"
        second = space.folder("candidates", self.second.id) / "predictions.npz"
        label = pictures.read_labels(space.folder("data", self.data) / "data.npz", "test_y")
        return compare.answers(compare.read_logits(first), compare.read_logits(second), label)


def choose(now: State) -> Pair | None:
    """Which candidate, and against what. None where there is nothing to compare yet."""
    space = workspace()
    found = space.candidates(now.model, now.data) if now.model and now.data else {}
    original = space.baseline(now.model, now.data) if now.model and now.data else None
    if not found or original is None:
        return None
    ids, named = list(found), {"": "Original", **titles(found)}
    left, right = st.columns(2)
    start = ids.index(now.picked) if now.picked and now.picked in found else 0
    second = left.selectbox("Candidate", ids, start, format_func=named.__getitem__, key=f"candidate-{now.picked}")
    others = ["", *(i for i in ids if i != second)]
    first = right.selectbox("Against", others, format_func=named.__getitem__, key="against")
    now.picked = second
    base = found[first] if first else None
    cards = space.model_card(str(now.model)), space.data_card(str(now.data))
    scores = base.scores if base else original
    return Pair(str(now.model), str(now.data), *cards, base, scores, named[first], found[second])


def figures(pair: Pair) -> None:
    """Key figures, each with its unit, interval and badge, and what they mean in time."""
    before, after = pair.first_scores, pair.second.scores
    badge, speed = tables.badge_of(after), tables.latency_of(after)
    with st.grid(3, min_column_width=200):
        if after.accuracy and before.accuracy:
            points = 100 * (after.accuracy.value - before.accuracy.value)
            detail = f"{points:+.2f} points; {tables.interval(after.accuracy)}".replace(
                "-", "−", 1 if points < 0 else 0
            )
            show_figure("Accuracy", tables.percent(after.accuracy.value), badge, detail)
        same = tables.interval(after.agreement)
        show_figure("Agreement", tables.percent(after.agreement.value), badge, f"same answers as the original; {same}")
        if speed:
            low, high = tables.times(speed.speedup_low), tables.times(speed.speedup_high)
            detail = f"as fast as the original, {compare.setting(speed)}; {low} to {high} in {speed.runs} runs in turn"
            show_figure("Speed", tables.times(speed.speedup), "measured", detail)
        show_figure("File size", tables.size(after.size_bytes), "exact", _change(before.size_bytes, after.size_bytes))
        show_figure("Parameters", tables.count(after.params), "exact", _change(before.params, after.params))
        show_figure("MACs", tables.count(after.macs), "exact", _change(before.macs, after.macs))
        change = _change(before.peak_bytes, after.peak_bytes)
        show_figure("Peak memory", tables.size(after.peak_bytes), "exact", change, PEAK)
    latency(pair)


def _change(before: float, after: float) -> str:
    """'−48.2 %, 1.93 times less'."""
    if not before or not after or abs(after / before - 1) < 5e-4:
        return "as before"
    if after > before:
        return f"+{100 * (after / before - 1):.1f} %"
    return f"−{100 * (1 - after / before):.1f} %, {before / after:.2f} times less"


def latency(pair: Pair) -> None:
    """Every setting measured, with the ratio's spread, and what it amounts to in words."""
    rows = pair.second.scores.latency
    against = "" if pair.first is None else "Against the original: "  # every file is timed beside it
    st.markdown(f"**{against}{compare.speed_sentence(pair.second.scores, pair.first_scores)}**")
    if not rows:
        return
    table = [
        {
            "Setting": compare.setting(row),
            "Original": row.original_ms,
            "Candidate": row.latency_ms,
            "Faster": row.speedup,
            "Spread": f"{row.speedup_low:.2f}× – {row.speedup_high:.2f}×",
            "Runs": row.runs,
        }
        for row in rows
    ]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        alt = "Times of the original and the candidate in every setting"
        data_table(columns.TIMES, table, key="times", alt=alt)
        st.caption("Median time of a whole batch in ONNX Runtime on this machine; original and candidate take turns.")
    with right:
        plot(compare_charts.speedups(rows), "speedups")


def classes(pair: Pair) -> None:
    """Accuracy per class, and whether the difference is more than chance."""
    answers = pair.answers()
    if answers.p_value is not None:
        sure = "more than chance explains" if answers.p_value < 0.05 else "no more than chance may explain"
        st.markdown(
            f"Of {len(answers.original):,} test images, {len(answers.lost):,} only the {_low(pair)} got right and "
            f"{len(answers.won):,} only the candidate: McNemar's exact test gives p = {answers.p_value:.3g}, {sure}."
        )
    rows = compare_charts.class_rows(pair.card.classes, pair.first_scores, pair.second.scores)
    if not rows:
        st.info("Accuracy per class needs labelled data; this data set has none.")
        return
    if len(rows) < len(pair.card.classes):
        st.caption(f"The {len(rows)} classes that changed most, of {len(pair.card.classes)}.")
    plot(compare_charts.per_class(rows, pair.first_title), "classes")


def _low(pair: Pair) -> str:
    return "original" if pair.first is None else "other candidate"


def changed(pair: Pair) -> None:
    """The images whose answer is another one, a page at a time."""
    answers = pair.answers()
    groups = {"All that changed": answers.changed, "Now wrong": answers.lost, "Now right": answers.won}
    if answers.label is None:
        groups = {"All that changed": answers.changed}
    key = st.segmented_control(
        "Which", list(groups), default="All that changed", required=True, key="which-changed",
        format_func=lambda name: f"{name} ({len(groups[name]):,})", label_visibility="collapsed",
    )  # fmt: skip
    index = groups[key]
    if not len(index):
        st.success("No such image: here both gave the same answer everywhere.", icon=":material/check:")
        return
    pages = -(-len(index) // PER_PAGE)
    page = st.pagination(pages, key=f"page-{key}-{pair.second.id}") if pages > 1 else 1
    shown = index[(page - 1) * PER_PAGE : page * PER_PAGE]
    images = pictures.read_rows(workspace().folder("data", pair.data) / "data.npz", "test_x", shown.tolist())
    names = pair.card.classes
    with st.grid(6, min_column_width=130):
        for i, pixels in zip(shown, images, strict=True):
            said = f"{names[answers.original[i]]} → {names[answers.candidate[i]]}"
            truth = "" if answers.label is None else f" (is {names[answers.label[i]]})"
            st.image(
                inline(pictures.png(pixels)),
                said + truth,
                alt=f"Test image {i}: {said}{truth}",
                width="stretch",
            )


def layers(pair: Pair) -> None:
    """How far each layer's output is from the original's, and what was left alone and why."""
    if pair.second.layer_error:
        known, all_layers = len(pair.second.layer_error), len(workspace().profile(pair.model).tunable)
        left_out = f" {known} of {all_layers} layers: the others have another shape now." if known < all_layers else ""
        st.caption(f"How far each layer's output is from the original's, on calibration images.{left_out}")
        plot(compare_charts.layer_error(pair.second.layer_error), "layers")
    else:
        st.info("No layer's output can be compared: every layer has another shape now.")
    if pair.second.skipped:
        st.markdown("**Left as they are**")
        rows = [{"Step": CATALOG[s.technique].title, "Layer": s.layer, "Reason": s.reason} for s in pair.second.skipped]
        data_table(columns.SKIPPED, rows, key="skipped", alt="Layers that a step left alone, and why")


def graphs(pair: Pair) -> None:
    """Both files in Netron."""
    if not LEASES.served:
        st.info("The graph viewer needs the studio's server: start it with `cnn-studio`.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = [layer.name for layer in workspace().profile(pair.model).tunable]
        focus = st.selectbox("Jump to layer", names, None, placeholder="Layer", key="jump", width=320)
        sync = st.toggle("Keep both in step", True, key="sync", help="Select and scroll in both graphs at once.")
    left, right = (
        graph_address(file, name) for file, name in zip(pair.files(), ("first.onnx", "second.onnx"), strict=True)
    )
    node = graph_pair(left, right, focus=focus, sync=sync, key="pair")
    st.caption(f"Selected: {node}" if node else "Select a node to find it in both graphs.")


VIEWS: dict[str, Callable[[Pair], None]] = {
    "Key figures": figures,
    "Classes": classes,
    "Changed answers": changed,
    "Layers": layers,
    "Graphs": graphs,
}
