"""The model that is open: where it is from, its key figures, and where to go from here."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import opening, state
from app.figures import show_figures
from app.state import State
from app.tables import plain
from core.cards import DataCard, ModelCard

PAGES = Path(__file__).resolve().parents[1] / "pages"


def show(now: State, model: str) -> None:
    """A card with everything that is known before any question is asked."""
    space = state.workspace()
    card = space.model_card(model)
    scores = space.baseline(model, now.data) if now.data else None
    with st.container(border=True, key="current"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.subheader(plain(card.title))
            _switch(now, model, space.models())
        st.caption(_about(card))
        if card.description:
            st.caption(plain(card.description))
        st.caption(_measured(space.data_card(now.data) if now.data else None, scores is not None))
        show_figures(space.profile(model), scores)
        with st.container(horizontal=True, vertical_alignment="center"):
            if now.data and scores is None and not now.job:
                st.button(
                    "Measure accuracy",
                    icon=":material/straighten:",
                    on_click=opening.start,
                    args=(_here(model), _here(now.data), f"Measure {card.title}"),
                )
            st.page_link(PAGES / "inspect.py", label="Inspect its layers", icon=":material/account_tree:")
            st.page_link(PAGES / "tune.py", label="Tune it", icon=":material/tune:")


def _here(name: str) -> dict[str, str]:
    return {"kind": "workspace", "id": name}


def _switch(now: State, model: str, models: dict[str, ModelCard]) -> None:
    if len(models) == 1:
        return
    names = list(models)
    chosen = st.selectbox(
        "Models in this workspace",
        names,
        index=names.index(model),
        format_func=lambda name: f"{models[name].title} · {name.rsplit('-', 1)[-1]}",
        width=320,
        label_visibility="collapsed",
        key=f"models-{model}",
    )
    if chosen and chosen != model:
        now.choose(chosen)
        st.rerun()


def _about(card: ModelCard) -> str:
    facts = [f"input {'×'.join(map(str, card.input_shape))}", f"{len(card.classes)} classes"]
    return " · ".join([*facts, *(plain(text) for text in (card.source, card.licence) if text)])


def _measured(data: DataCard | None, done: bool) -> str:
    if data is None:
        return "No data: open it again together with images to measure its accuracy."
    images = f"{data.test:,} test images of {plain(data.title)}{'' if data.labelled else ', without labels'}"
    return f"Measured on {images}." if done else f"Not yet measured on the {images}."
