"""Opening a model with its data: start the job, follow it, and take its result as the tab's choice."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import state
from app.job_card import show_job
from app.tables import plain
from app.uploads import DATA_TYPES, MODEL_TYPES, settle
from core.errors import StudioError
from core.jobs import Job


def start(model: dict[str, Any], data: dict[str, Any] | None, title: str) -> None:
    """Queue the opening and follow it on the Library page."""
    state.current().job = state.jobs().submit("open", {"model": model, "data": data}, title)


def start_upload(model: dict[str, Any], data: dict[str, Any] | None) -> None:
    """The same for what the forms gave; the uploads leave the server's memory. A problem is shown as a sentence."""
    here = state.current()
    try:
        source = settle(model, MODEL_TYPES)
        images = settle(data, DATA_TYPES) if data else None
        start(source, images, f"Open {source['path'].rsplit('/', 1)[-1]}")
        here.uploads += 1  # new forms: Streamlit lets go of the files
        here.notice = ""
    except StudioError as error:
        here.notice = str(error)


def followed() -> Job | None:
    """The opening this tab waits for. A tab that chose nothing yet waits for any that is on its way, and one whose
    model has no data yet for the opening that is bringing them."""
    here = state.current()
    if here.job is None and here.data is None:
        live = (job for job in state.jobs().list() if job.live and job.kind == "open")
        here.job = next((job.id for job in live if here.model is None or brings(job, here.model)), None)
    try:
        return state.jobs().get(here.job) if here.job else None
    except StudioError:
        here.job = None  # its folder was removed
        return None


def brings(job: Job, model: str | None) -> bool:
    """Whether this is an opening that has brought the model, and its data later."""
    return job.kind == "open" and (job.metrics or {}).get("model") == model


def follow() -> None:
    """Show the opening at the bottom of the window, wherever the page is scrolled to, until it ends."""
    job = followed()
    if job is None:
        return
    with st.bottom:
        _watch(job.live)


def _watch(live: bool) -> None:
    @st.fragment(run_every=1.0 if live else None, key="opening")
    def card() -> None:
        state.jobs().pump()
        job = followed()
        if job is None:
            return
        if _take(job) or (live and not job.live):
            st.rerun()  # show what is there now, and stop the timer
        show_job(job, dismiss=_dismiss)

    card()


def _take(job: Job) -> bool:
    """Make what the job has brought so far the tab's choice; whether that changed anything."""
    here = state.current()
    if job.status == "done" and job.result:
        here.job = None
        here.choose(job.result["model"], job.result["data"])
        name = state.workspace().model_card(job.result["model"]).title
        st.toast(f"{plain(name)} is open.", icon=":material/check_circle:")
        return True
    profiled = (job.metrics or {}).get("model")
    if profiled and here.model != profiled:
        here.choose(profiled)  # its figures are shown while its accuracy is being measured
        return True
    return False


def _dismiss() -> None:
    state.current().job = None
