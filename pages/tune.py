"""Tune: one layer table with a slider per layer, the recipe as a strip of steps, and Run."""

import streamlit as st

from app import budget_view, forecast_view, recipe_strip, tune_view
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
    known, times = forecast_view.load(now), forecast_view.load_times(now)
    left, right = st.columns([13, 8], gap="medium")
    with left:
        forecast_view.offer(now, profile, known)
        budget_view.panel(now, profile, known, times)  # first: what it buys is what the rest shows
        place = tune_view.choose(now)
        tune_view.switch(now, place)
        predicted, above = st.container(), st.container()
        tune_view.options(now, place)
        with above:
            tune_view.table(now, profile, place, known)
        with predicted:
            forecast_view.figures(now, profile, known, times)
    with right:
        recipe_strip.run_button(now)
        recipe_strip.strip(now, profile)
        budget_view.gain_cards(now, profile, known, times)
        recipe_strip.chart(now, profile)
        forecast_view.track(known)


def follow(job_id: str, stage: int) -> None:
    """The job in progress; when it ends, or there is more to predict from, the page shows it."""
    job = jobs().get(job_id)
    recipe_strip.progress(now, job)
    if not job.live or (job.kind == forecast_view.KIND and forecast_view.stage(now) != stage):
        st.rerun()


try:
    card = workspace().model_card(now.model)
    data = f" · measured on {workspace().data_card(now.data).title}" if now.data else ""
    st.caption(plain(f"{card.title}{data}"))
    now.given = None  # a page drawn from the start gives the layer table everything
    tuner(workspace().profile(now.model))
    job = recipe_strip.followed(now)
    if job is not None:
        with st.bottom:
            if job.live:
                st.fragment(follow, run_every=1)(job.id, forecast_view.stage(now))
            else:
                recipe_strip.progress(now, job)
except StudioError as error:
    st.error(str(error))
