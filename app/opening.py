"""Opening a model with its data: start the job, follow it, and take its result as the tab's choice."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import state
from app.job_card import show_job
from app.uploads import DATA_TYPES, MODEL_TYPES, settle
from core.errors import StudioError
from core.jobs import Job


def start(model: dict[str, Any], data: dict[str, Any] | None, title: str) -> None:
    """Queue the opening and follow it on the Library page."""
    state.current().job = state.jobs().submit("open", {"model": model, "data": data}, title)


def start_upload(model: dict[str, Any], data: dict[str, Any] | None) -> None:
    """The same for what the forms gave; the uploads leave the server's memory. A problem is shown as a sentence."""
    try:
        source = settle(model, MODEL_TYPES)
        images = settle(data, DATA_TYPES) if data else None
        start(source, images, f"Open {source['path'].rsplit('/', 1)[-1]}")
        state.current().uploads += 1  # new forms: Streamlit lets go of the files
    except StudioError as error:
        state.current().notice = str(error)


def followed() -> Job | None:
    """The opening this tab waits for; a tab that chose nothing yet waits for any that is on its way."""
    here = state.current()
    if here.job is None and here.model is None:
        waiting = (job.id for job in state.jobs().list() if job.live and job.kind == "open")
        here.job = next(waiting, None)
    try:
        return state.jobs().get(here.job) if here.job else None
    except StudioError:
        here.job = None  # its folder was removed
        return None


def follow() -> None:
    """Show the opening in progress, once a second, until it ends."""
    job = followed()
    if job is None:
        return
    _watch(job.live)


def _watch(live: bool) -> None:
    @st.fragment(run_every=1.0 if live else None, key="opening")
    def card() -> None:
        state.jobs().pump()
        job = followed()
        if job is None:
            return
        here = state.current()
        ready = job.metrics or {}
        if job.status == "done" and job.result:
            here.job = None
            here.choose(job.result["model"], job.result["data"])
            st.rerun()
        if ready.get("model") and here.model != ready["model"]:
            here.choose(ready["model"])  # profiled already: show it while accuracy is being measured
            st.rerun()
        show_job(job)
        if live and not job.live:
            st.rerun()  # stop the timer

    card()
