"""Tune: one layer table with a slider per layer, the recipe as a strip of steps, and Run."""

import streamlit as st

from app import recipe_strip, tune_view
from app.empty import nothing_yet
from app.state import current, jobs, workspace
from app.tables import plain
from core.errors import StudioError
from core.layers import Profile

now = current()
st.title("Tune")
if now.model is None:
    nothing_yet("No model is open", "Open a sample or upload your own in the Library.")
    st.stop()


@st.fragment(key="tuner")
def tuner(profile: Profile) -> None:
    """Letting go of a slider runs this and nothing else."""
    left, right = st.columns([13, 8], gap="medium")
    with left:
        place = tune_view.choose(now)
        tune_view.switch(now, place)
        above = st.container()
        tune_view.options(now, place)
        with above:
            tune_view.table(now, profile, place)
    with right:
        recipe_strip.run_button(now)
        recipe_strip.strip(now, profile)
        recipe_strip.chart(now, profile)


def follow(job_id: str) -> None:
    """The run in progress; when it ends, the page shows what it made."""
    job = jobs().get(job_id)
    recipe_strip.progress(now, job)
    if not job.live:
        st.rerun()


try:
    card = workspace().model_card(now.model)
    data = f" · measured on {workspace().data_card(now.data).title}" if now.data else ""
    st.caption(plain(f"{card.title}{data}"))
    tuner(workspace().profile(now.model))
    job = recipe_strip.followed(now)
    if job is not None:
        with st.bottom:
            if job.live:
                st.fragment(follow, run_every=1)(job.id)
            else:
                recipe_strip.progress(now, job)
except StudioError as error:
    st.error(str(error))
