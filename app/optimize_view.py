"""The automatic recipe as a card: what may be lost, what for and how long; then its progress and the best so far."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import columns, tables
from app.components.data_table import data_table
from app.figures import badge
from app.job_card import time_left
from app.state import State, jobs, workspace
from core.jobs import Job
from core.strategy import DROPS

GOALS = {"latency": "Speed", "size": "File size", "macs": "MACs"}  # objective → word
HELP = (
    "Tries int8, channel pruning, factors and, where the images allow it, training. What is best on the validation "
    "images is verified on the test images and kept."
)
STEPS = ("tune", "compare", "export")


def card(now: State) -> None:
    """A form while nothing is searched for, and below it the newest search of this model on this data."""
    if now.model is None or now.data is None:
        return
    with st.container(border=True, key="optimize"):
        st.subheader("Automatic recipe")
        st.caption(HELP)
        job = _newest(now)
        if job is None or not job.live:
            _form(now)
        if job:
            _follow(now, job)


def _form(now: State) -> None:
    labelled = workspace().data_card(str(now.data)).labelled
    judge = "accuracy" if labelled else "agreement"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        drop = st.number_input(
            f"Allowed loss (points of {judge})", 0.0, 20.0, 100 * DROPS[judge], 0.1, key=f"drop-{labelled}", width=260
        )
        goal = st.segmented_control(
            "Optimize for", list(GOALS), default="latency", required=True, format_func=GOALS.__getitem__, key="goal"
        )
        minutes = st.number_input("Minutes", 1, 240, 5, key="minutes", width=120)
        order = {"model": now.model, "data": now.data, "drop": drop / 100, "objective": goal, "minutes": minutes}
        title = f"Optimize {workspace().model_card(str(now.model)).title} for {GOALS[str(goal)].lower()}"
        if st.button("Find the best recipe", type="primary", icon=":material/auto_awesome:", key="find"):
            jobs().submit("optimize", order, title)
            st.rerun()


def _newest(now: State) -> Job | None:
    """The search to show: the newest of this model on this data."""
    mine = {"model": now.model, "data": now.data}
    found = (job for job in jobs().list() if job.kind == "optimize" and mine.items() <= job.params.items())
    return next(found, None)


def _follow(now: State, job: Job) -> None:
    """Look once a second while it is live; the page is drawn anew when a new best is there or it ends."""
    seen = _best(job)

    @st.fragment(run_every=1.0 if job.live else None, key="search")
    def watch() -> None:
        jobs().pump()
        here = jobs().get(job.id)
        if job.live and (not here.live or _best(here) != seen):
            st.rerun()
        _show(now, here)

    watch()


def _best(job: Job) -> str:
    """The id of the best candidate so far, "" before there is one."""
    return str((job.result or job.metrics or {}).get("candidate" if job.result else "best") or "")


def _show(now: State, job: Job) -> None:
    if job.live:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(job.fraction, f"{tables.plain(job.message)}{time_left(job)}")
            st.button("Cancel", icon=":material/stop:", key="stop-search", on_click=jobs().cancel, args=(job.id,))
    elif job.status == "failed":
        st.error(tables.plain(job.error))
    elif job.result:
        st.caption(tables.plain(str(job.result["reason"])))
    else:
        st.caption("Stopped. What was verified until then is kept.")
    name = _best(job)
    if name in workspace().candidates(now.model, now.data):
        _show_best(now, name, "Best so far" if job.live else "Best found" if _found(job) else "Nearest")
    trials = (job.metrics or {}).get("trials")
    if trials:
        with st.expander(f"{len(trials)} recipes tried", icon=":material/list:", key="tried"):
            _show_trials(trials)


def _found(job: Job) -> bool:
    """Whether the best keeps the allowed loss."""
    return bool(job.result["found"]) if job.result else True


def _show_best(now: State, name: str, word: str) -> None:
    """What the best file can do, verified, and the way to it."""
    made = workspace().candidate(name)
    original = workspace().baseline(made.model, made.data)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{word}: **{tables.plain(made.title)}** · {tables.gains(made.scores, original)}", width="content")
        badge(tables.badge_of(made.scores))
    with st.container(horizontal=True):
        for page, icon in zip(STEPS, ("tune", "compare", "download"), strict=True):
            if st.button(page.capitalize(), icon=f":material/{icon}:", key=f"best-{page}", type="tertiary"):
                now.pick(made)
                st.switch_page(f"../pages/{page}.py")


def _show_trials(trials: list[dict[str, Any]]) -> None:
    alt = "Every recipe tried, with the loss that its answers to validation images lead to expect"
    data_table(columns.TRIALS, [_trial(row) for row in trials], key="trials", alt=alt)
    st.caption(
        "Star: the best when it was tried. Points lost are expected from answers to validation images and, where there "
        "are many labelled test images, from how sure the original is of those."
    )


def _trial(row: dict[str, Any]) -> dict[str, Any]:
    """What failed has no numbers."""
    title = ("* " if row["kept"] else "") + row["title"]
    if not row["size_bytes"]:
        return {"Recipe": title, "Result": row["why"]}
    sums = {"Size": row["size_bytes"], "MACs": row["macs"], "Speed": row["speedup"] or None}
    return {"Recipe": title, "Points lost": 100 * row["loss"], **sums, "Result": row["why"]}
