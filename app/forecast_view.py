"""What the Tune page says before a recipe is run: predicted accuracy and latency, and how right such numbers were.

Nothing is predicted before the model's sensitivity was measured on its data, once, by a job that this page starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import streamlit as st

from app import forecast_chart
from app.figures import inline_badge
from app.plot import plot
from app.state import State, jobs, workspace
from app.tables import milliseconds, percent, times
from core import forecast as forecasts
from core.forecast import Forecast, Prediction, Track
from core.jobs import Job
from core.latency_table import LatencyTable
from core.layers import Profile
from core.recipe_latency import Speed, latency_path, layer_times, load_latency, predict_latency, slower_layers
from core.workspace import Workspace

KIND = "sensitivity"  # the job's
ORIGINAL = "nothing is changed"


def load(now: State) -> Forecast | None:
    """The forecast of the open model on its data, as far as it is measured."""
    if not (now.model and now.data):
        return None
    return _load(str(workspace().root), now.model, now.data, stamps(now))


def stamps(now: State) -> tuple[int, ...]:
    """Equal as long as nothing that a forecast is made of has changed."""
    space = workspace()
    folder, data = space.folder("models", str(now.model)), Path(str(now.data)).name
    names = (f"sensitivity-{data}.jsonl", f"calibration-{data}.jsonl", f"baseline-{data}.json")
    return tuple(_stamp(path) for path in (*(folder / name for name in names), space.root / "candidates"))


def load_times(now: State) -> LatencyTable | None:
    """Operator times of the open model on this machine."""
    space = workspace()
    return _load_times(str(space.root), str(now.model), _stamp(latency_path(space, str(now.model))))


@st.cache_resource(max_entries=8, show_spinner=False)
def _load(root: str, model: str, data: str, stamps: tuple[int, ...]) -> Forecast | None:
    return forecasts.load(Workspace(Path(root)), model, data)


@st.cache_resource(max_entries=8, show_spinner=False)
def _load_times(root: str, model: str, stamp: int) -> LatencyTable | None:
    return load_latency(Workspace(Path(root)), model)


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def measuring(now: State) -> Job | None:
    """The job that measures this model on this data, while it goes on."""
    params = {"model": now.model, "data": now.data}
    return next((job for job in jobs().list() if job.live and job.kind == KIND and job.params == params), None)


def stage(now: State) -> int:
    """How much can be said: 0 nothing, 1 ranks, 2 some curves, 3 accuracy, 4 with repair too, 5 all is measured."""
    known = load(now)
    if known is None:
        return 0
    if not known.table.curves:
        return 1
    enough = [len(known.calibration(repair).points) >= forecasts.FEWEST for repair in (False, True)]
    return 5 if known.finished else 2 + sum(enough)


def offer(now: State, profile: Profile, known: Forecast | None) -> None:
    """One click that makes predictions possible, or goes on where measuring was stopped."""
    done = known is not None and known.finished
    if not now.data or done or workspace().baseline(str(now.model), now.data) is None or measuring(now):
        return
    title = "Go on measuring" if known else "Measure sensitivity"
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="sensitivity"):
        st.markdown(
            "**See it before you run it.** Measure once how sensitive each layer is, and the sliders tell accuracy and "
            "speed in advance. First numbers come early and get better for about "
            f"{_minutes(expected_seconds(profile))}; go on working meanwhile.",
            width="stretch",
        )
        if st.button(title, icon=":material/insights:", key="measure"):
            name = workspace().model_card(str(now.model)).title
            jobs().submit(KIND, {"model": now.model, "data": now.data}, f"Measure sensitivity of {name}")
            st.rerun()


def _minutes(seconds: float) -> str:
    return "a minute" if seconds < 90 else f"{round(seconds / 60)} minutes"


def expected_seconds(profile: Profile) -> float:
    """A part that any model needs, one per layer, one per MAC: half as much again as four networks of 10 to 56 layers
    took at most on two cores (ResNet-20 144 s, ResNet-56 190 s), since processors differ."""
    return 60.0 + 4.0 * len(profile.tunable) + 1.5e-6 * profile.macs


def figures(now: State, profile: Profile, known: Forecast | None, table: LatencyTable | None) -> None:
    """Predicted accuracy and latency of the recipe at the sliders."""
    if known is None:
        return
    with st.grid(2, min_column_width=200, key="predicted"):
        # what nothing changes is the original's own accuracy, which was verified and not predicted
        _show(*accuracy_words(known, known.predict(now.recipe)), "predicted" if now.recipe.active else "verified")
        if table is not None:
            after = layer_times(profile, now.recipe, table)
            speed = predict_latency(profile, now.recipe, table, after)
            _show(*latency_words(speed, slower_layers(profile, table, after)), "predicted")


def _show(label: str, value: str, detail: str, faint: bool, badge: str) -> None:
    """One card, in the size of the layer table's own."""
    with st.container(border=True, gap=None, height="stretch"):
        st.markdown(f":small[{label}] {inline_badge(badge)}")
        look = "opacity:0.45;" if faint else ""
        st.html(
            f'<div style="{look}font-size:1.5rem;font-weight:600;line-height:1.25">{escape(value)}</div>'
            f'<div style="font-size:0.8rem;opacity:0.85">{escape(detail)}</div>'
        )


def accuracy_words(known: Forecast, found: Prediction) -> tuple[str, str, str, bool]:
    """(label, value, what to know about it, whether it is beyond what was measured)."""
    label = known.measure.capitalize()
    if found.value is None or found.low is None or found.high is None:
        return label, "–", found.reason, True
    if found.kl == 0:
        return label, percent(found.value, 1), found.reason or ORIGINAL, False
    change = round(100 * (found.value - known.baseline), 1) + 0.0  # never −0.0
    said = f"{100 * found.low:.1f}–{100 * found.high:.1f} %, right 8 times in 10; {change:+.1f} points".replace(
        "-", "−"
    )
    if found.extrapolating:
        said = "extrapolating: further from the original than anything that was measured"
    return label, percent(found.value, 1), f"{said}; {found.reason}" if found.reason else said, found.extrapolating


def latency_words(speed: Speed, slower: Mapping[str, float]) -> tuple[str, str, str, bool]:
    """The same for milliseconds, with the layers that get slower."""
    label = "Latency"
    if speed.latency_ms is None or speed.speedup is None:
        return label, "–", speed.reason, True
    factor = "as fast as the original" if abs(speed.speedup - 1) < 0.005 else _factor(speed.speedup)
    said = f"{factor}; batch 1, 1 thread"
    if slower:
        worst = max(slower, key=slower.__getitem__)
        more = f" and {len(slower) - 1} more" if len(slower) > 1 else ""
        said += f". Slower than before: {worst} (+{slower[worst]:.0%}){more}"
    return label, milliseconds(speed.latency_ms), said, False


def _factor(speedup: float) -> str:
    return f"{times(speedup)} as fast" if speedup > 1 else f"{times(1 / speedup)} slower than the original"


def track(known: Forecast | None) -> None:
    """How right the studio was: every measured plan beside what the others predict for it."""
    if known is None or not known.checks:
        return
    with st.expander(
        "How right was the forecast?", icon=":material/fact_check:", key="track", on_change="rerun"
    ) as box:
        if not box.open:
            return
        found = known.track()
        assert found is not None
        expected = known.remembered is not None
        st.markdown(track_words(found, "" if expected else "measured "))
        drawn = forecast_chart.checks(known.checks, known.measure, expected)
        plot(drawn, "checks")
        st.caption(
            f"Each point is a whole network{'' if expected else ', measured'}; its prediction comes from all others. "
            "What you run joins them."
        )
        if known.remembered is not None:
            st.caption(remembered_words(known.remembered, known.baseline))


def track_words(found: Track, kind: str = "measured ") -> str:
    """One sentence."""
    return (
        f"Off by {100 * found.error:.1f} points on average over {found.count} {kind}networks; "
        f"{found.coverage:.0%} lie within their interval (meant: 80 %); rank correlation {found.rank_correlation:.2f}."
    )


def remembered_words(validation: float, test: float) -> str:
    """What was done about validation images that the network was trained on."""
    return (
        f"The original is right on {100 * validation:.2f} % of the validation images and {100 * test:.2f} % of the "
        "test images: it was probably trained on the former, and loses less there. So small losses of calibration "
        "networks are not counted, but expected from how sure the original is of each test image. Your own runs are "
        "counted on those."
    )
