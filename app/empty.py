"""What a page shows before there is anything to show: what is missing, and the way to it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

LIBRARY = Path(__file__).resolve().parents[1] / "pages" / "library.py"


def nothing_yet(title: str, sentence: str, page: Path = LIBRARY, label: str = "Go to the Library") -> None:
    """A quiet card with one link."""
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown(f"#### {title}", width="content")
        st.caption(sentence, width="content")
        st.page_link(page, label=label, icon=":material/arrow_forward:", width="content")
