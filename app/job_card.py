"""One job as a card: what it does, how far it is, how long it still takes, and a way to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import streamlit as st

from app import state
from app.state import State
from app.tables import duration, plain
from core.jobs import Job

LOOKS = {  # status → (icon, colour)
    "queued": (":material/schedule:", "gray"),
    "running": (":material/progress_activity:", "blue"),
    "cancelling": (":material/hourglass_bottom:", "orange"),
    "done": (":material/check_circle:", "green"),
    "failed": (":material/error:", "red"),
    "cancelled": (":material/block:", "gray"),
}
SHOWN = 30  # newest jobs on the page
LOG_SHOWN = 20_000  # last bytes of a log that a page shows


def show_job(job: Job, *, log: bool = False, dismiss: Callable[[], None] | None = None) -> None:
    """The card. With `log`, what the worker printed can be opened; `dismiss` puts an ended job out of sight."""
    icon, colour = LOOKS[job.status]
    with st.container(border=True, key=f"job_{job.id}"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{plain(job.title)}**")
            with st.container(horizontal=True, width="content", vertical_alignment="center"):
                st.badge(job.status, icon=icon, color=colour)  # type: ignore[arg-type]
                if job.live:
                    st.button(
                        "Cancel",
                        key=f"cancel_{job.id}",
                        icon=":material/stop:",
                        on_click=state.jobs().cancel,
                        args=(job.id,),
                        disabled=job.status == "cancelling",
                    )
                elif dismiss:
                    st.button("Dismiss", key=f"dismiss_{job.id}", icon=":material/close:", on_click=dismiss)
        if job.live:
            st.progress(job.fraction, text=f"{plain(job.message)}{time_left(job)}")
        elif job.error:
            st.error(plain(job.error))
        if job.live and job.curves:
            _show_curves(job.curves)
        if log:
            _show_log(job)


def show_jobs(now: State) -> None:
    """All jobs, newest first, looked at once a second while any of them is live."""
    live = any(job.live for job in state.jobs().list())

    @st.fragment(run_every=1.0 if live else None, key="jobs")
    def board() -> None:
        state.jobs().pump()
        found = state.jobs().list()
        for job in now.changes(found):
            st.toast(f"{plain(job.title)}: {job.status}", icon=LOOKS[job.status][0])
        for job in found[:SHOWN]:
            show_job(job, log=not job.live)
        if len(found) > SHOWN:
            st.caption(f"{len(found) - SHOWN} older jobs are not shown.")
        if not found:
            st.caption("No job has been started yet.")
        if live and not any(job.live for job in found):
            st.rerun()  # stop the timer, and show what the jobs made

    board()


def time_left(job: Job) -> str:
    """' · about 40 s left', counted on since the worker last reported."""
    if job.seconds_left is None:
        return ""
    left = max(1.0, job.seconds_left - (time.time() - job.updated))
    return f" · about {duration(left)} left"


def when(job: Job) -> str:
    """'14:03, took 1 min 15 s'."""
    start = datetime.fromtimestamp(job.created).strftime("%d %b %H:%M")
    return f"{start}, took {duration(job.ended - job.started)}" if job.ended and job.started else start


def _show_curves(curves: dict[str, list[float]]) -> None:
    with st.container(horizontal=True):
        for name, values in list(curves.items())[:4]:
            shown = f"{values[-1]:.2%}" if name.endswith("accuracy") else f"{values[-1]:.4g}"
            st.metric(name.replace("_", " ").capitalize(), shown, chart_data=values, border=True)


def _show_log(job: Job) -> None:
    text = job.log.read_bytes()[-LOG_SHOWN:].decode("utf-8", "replace") if job.log.exists() else ""
    with st.expander(f"Log · {when(job)}", icon=":material/notes:"):
        st.code(text or "The worker printed nothing.", language=None)
        if text:
            st.download_button(
                "Download log",
                job.log.read_bytes,  # on the click: see the recipe's download
                f"{job.id}.log.txt",
                "text/plain",
                key=f"log_{job.id}",
                on_click="ignore",
                icon=":material/download:",
            )
