"""Runs: every job with its progress, and every candidate so far, in a chart and a table."""

from dataclasses import replace
from pathlib import Path

import streamlit as st

from app import columns, front_view, optimize_view, state, tables
from app.components.data_table import data_table
from app.empty import nothing_yet
from app.job_card import show_jobs
from app.titles import titles

TUNE = Path(__file__).with_name("tune.py")

now = state.current()
space = state.workspace()
st.title("Runs")
optimize_view.card(now)

st.subheader("Candidates")
found = space.candidates(now.model, now.data) if now.model else {}
original = space.baseline(now.model, now.data) if now.model and now.data else None
if found and original:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        axis = front_view.choose_axis("runs-axis")
        info = front_view.gather(now, axis, found, original)
        front_view.badges(info, original)
    info = replace(info, limits=front_view.ask_limits(axis, info.measure))
    front_view.draw(info, now, found, "runs-front", plans=True)
    st.caption(front_view.caption(info, plans=True))
    front_view.tell(info, now, found)
    rows, alt = tables.candidate_rows(found), "Every candidate with its scores; select one to load its recipe"
    clicked = data_table(columns.CANDIDATES, rows, key="candidates", alt=alt, pick=True)
    if clicked in found:
        now.pick(found[clicked])
        st.rerun()
    if now.picked in found:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"Loaded: **{tables.plain(titles(found)[now.picked])}**", width="content")
            for name, icon in (("tune", "tune"), ("compare", "compare"), ("export", "download")):
                st.page_link(TUNE.with_name(f"{name}.py"), label=name.capitalize(), icon=f":material/{icon}:")
elif now.model is None:
    nothing_yet("No model is open", "Open a sample or upload your own in the Library.")
else:
    nothing_yet("No candidates yet", "Set up a recipe and run it; every result is kept here.", TUNE, "Go to Tune")

st.subheader("Jobs")
st.caption("Jobs go on if you close this tab. Everything they finish is kept.")
show_jobs(now)
