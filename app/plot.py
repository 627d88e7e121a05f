"""A chart of `app.charts` on the page."""

from __future__ import annotations

from functools import cache
from typing import Any

import streamlit as st

from app.charts import BARE, Chart


def plot(chart: Chart, key: str, **more: Any) -> Any:
    """Draw it, with the sentence that says the same. `more` goes to Streamlit, whose answer is returned."""
    _set_theme()
    return st.plotly_chart(chart.figure, key=key, config=BARE, alt=chart.alt, **more)


@cache
def _set_theme() -> None:
    """Streamlit's colours for Plotly, which `app.server` puts off until there is a chart."""
    import plotly.io  # takes 0.2 s, so not before a page has something to draw
    from streamlit.elements.lib.streamlit_plotly_theme import configure_streamlit_plotly_theme

    if plotly.io.templates.default != "streamlit":
        configure_streamlit_plotly_theme()
