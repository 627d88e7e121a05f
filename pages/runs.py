"""Runs: every job with its progress, and every candidate so far, in a chart and a table."""

from pathlib import Path

import streamlit as st

from app import charts, columns, optimize_view, state, tables
from app.empty import nothing_yet
from app.figures import badge
from app.job_card import show_jobs

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
        axis = st.segmented_control(
            "Compare by",
            list(charts.AXES),
            default="macs",
            required=True,
            format_func=lambda key: charts.AXES[key].title.partition(",")[0],
        )
        badge(tables.badge_of(original))
    chart = charts.pareto(charts.front(found, original, axis), picked=now.picked)
    # the revision is part of the keys, so that a pick leaves chart and table without a selection that would fire again
    event = st.plotly_chart(
        chart.figure,
        key=f"front-{axis}-{now.revision}",
        on_select="rerun",
        selection_mode="points",
        config=charts.BARE,
        alt=chart.alt,
    )
    st.caption("Star: the original. Filled: no other is better in both. Click a point or a row to load its recipe.")
    frame, settings = columns.candidates(tables.candidate_rows(found))
    rows = st.dataframe(
        frame,
        column_config=settings,
        hide_index=True,
        key=f"candidates-{now.revision}",
        on_select="rerun",
        selection_mode="single-row",
        alt="Every candidate with its scores",
    )
    picked = [frame.index[row] for row in rows["selection"]["rows"]]
    picked += [point["customdata"][0] for point in event["selection"]["points"] if point.get("customdata")]
    if picked and picked[0] in found:
        now.pick(found[picked[0]])
        st.rerun()
    if now.picked in found:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"Loaded: **{tables.plain(found[now.picked].title)}**", width="content")
            for name, icon in (("tune", "tune"), ("compare", "compare"), ("export", "download")):
                st.page_link(TUNE.with_name(f"{name}.py"), label=name.capitalize(), icon=f":material/{icon}:")
elif now.model is None:
    nothing_yet("No model is open", "Open a sample or upload your own in the Library.")
else:
    nothing_yet("No candidates yet", "Set up a recipe and run it; every result is kept here.", TUNE, "Go to Tune")

st.subheader("Jobs")
st.caption("Jobs go on if you close this tab. Everything they finish is kept.")
show_jobs(now)
