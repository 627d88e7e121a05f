"""Compare: original and candidate by key figures, classes, changed answers, layers and graphs."""

from pathlib import Path

import streamlit as st

from app import compare_view
from app.empty import nothing_yet
from app.state import current
from core.errors import StudioError

TUNE = Path(__file__).with_name("tune.py")

now = current()
st.title("Compare")
try:
    pair = compare_view.choose(now)
    if pair is None:
        nothing_yet("Nothing to compare yet", "Run a recipe: its file is then compared here.", TUNE, "Go to Tune")
        st.stop()
    view = st.segmented_control(
        "View",
        list(compare_view.VIEWS),
        default=next(iter(compare_view.VIEWS)),
        required=True,
        key="view",
        bind="query-params",
        label_visibility="collapsed",
    )
    compare_view.VIEWS[view](pair)
except StudioError as error:
    st.error(str(error))
