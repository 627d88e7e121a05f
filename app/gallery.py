"""The sample models as cards with pictures of their data."""

from __future__ import annotations

import streamlit as st

from app import opening
from app.tables import percent, plain
from core.cards import ModelCard
from sample_models import SAMPLES, picture_file


def show() -> None:
    """One card per sample; its button opens it."""
    with st.grid(3, min_column_width=260):
        for name, card in SAMPLES.items():
            _card(name, card)


def _card(name: str, card: ModelCard) -> None:
    with st.container(border=True, height="stretch"):
        st.image(str(picture_file(name)), width="stretch", alt=f"Pictures of the data set {card.data}")
        st.markdown(f"**{plain(card.title)}**")
        st.caption(plain(card.description))
        if card.accuracy is not None:
            st.caption(f"Accuracy {percent(card.accuracy)} (verified when it was trained) · {plain(card.licence)}")
        st.space("stretch")
        st.button(
            "Open",
            key=f"open-{name}",
            icon=":material/folder_open:",
            on_click=opening.start,
            args=({"kind": "sample", "name": name}, {"kind": card.data}, f"Open {card.title}"),
            help=f"Opens {card.title} with its data, and measures it.",
        )
