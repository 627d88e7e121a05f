"""The sample models as cards with pictures of their data."""

from __future__ import annotations

import streamlit as st

from app import opening, state
from app.figures import inline
from app.tables import percent, plain
from core.cards import ModelCard
from sample_models import SAMPLES, picture_file

DOWNLOADS = {"cifar10": "170 MB"}  # data that does not come with the studio


def show() -> None:
    """One card per sample, those that need no download first; its button opens it."""
    with st.grid(4, min_column_width=240):
        for name, card in sorted(SAMPLES.items(), key=lambda sample: (sample[1].data in DOWNLOADS, sample[0])):
            _card(name, card)


def _card(name: str, card: ModelCard) -> None:
    with st.container(border=True, height="stretch"):
        picture = inline(picture_file(name).read_bytes())
        st.image(picture, width="stretch", alt=f"Pictures of the data set {card.data}")
        st.markdown(f"**{plain(card.title)}**")
        st.caption(plain(card.description))
        if card.accuracy is not None:
            st.caption(f"Accuracy {percent(card.accuracy)} (verified when it was trained) · {plain(card.licence)}")
        data = _data_of(card)
        if data["kind"] in DOWNLOADS:
            st.caption(f"Opening it downloads {DOWNLOADS[data['kind']]} of pictures, once.")
        st.space("stretch")
        st.button(
            "Open",
            key=f"open-{name}",
            icon=":material/folder_open:",
            on_click=opening.start,
            args=({"kind": "sample", "name": name}, data, f"Open {card.title}"),
            help=f"Opens {card.title} with its data, and measures it.",
        )


def _data_of(card: ModelCard) -> dict[str, str]:
    """The sample's data, from the workspace where it is there already."""
    here = (k for k, data in state.workspace().data_sets().items() if data.name == card.data)
    known = next(here, None)
    return {"kind": "workspace", "id": known} if known else {"kind": card.data}
