"""A chart of `app.charts` on the page."""

from __future__ import annotations

from functools import cache
from typing import Any

import streamlit as st

from app.charts import BARE, Chart


def plot(chart: Chart, key: str, **more: Any) -> Any:
    """Draw it, with the sentence that says the same. `more` goes to Streamlit, whose answer is returned."""
    _set_theme()
    return st.plotly_chart(_ready_figure()(chart.figure), key=key, config=BARE, alt=chart.alt, **more)


@cache
def _set_theme() -> None:
    """Streamlit's colours for Plotly, which `app.server` puts off until there is a chart."""
    import plotly.io  # takes 0.2 s, so not before a page has something to draw
    from streamlit.elements.lib.streamlit_plotly_theme import configure_streamlit_plotly_theme

    if plotly.io.templates.default != "streamlit":
        configure_streamlit_plotly_theme()


@cache
def _ready_figure() -> Any:
    """A figure that Plotly takes as it is: checking and copying every property takes longer than all else on the way to
    the browser. Tests check our figures."""
    import plotly.io
    from plotly.basedatatypes import BaseFigure

    template = plotly.io.templates[plotly.io.templates.default].to_plotly_json()

    class ReadyFigure(BaseFigure):  # type: ignore[misc]
        def __init__(self, figure: dict[str, Any]) -> None:
            object.__setattr__(self, "ready", figure)

        def to_dict(self) -> dict[str, Any]:
            return {**self.ready, "layout": {"template": template, **self.ready["layout"]}}

    return ReadyFigure
