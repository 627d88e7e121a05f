"""Library: open a sample or bring a model with its data; what it is comes before any question."""

from pathlib import Path

import streamlit as st

from app import gallery, opening, state, uploads
from app.figures import show_figures
from app.tables import plain

HERE = Path(__file__).parent

now = state.current()
space = state.workspace()
st.title("Library")
st.caption("Open a convolutional network, see what it costs, and make it smaller and faster on the pages that follow.")
if notice := now.take_notice():
    st.error(plain(notice), icon=":material/info:")
opening.follow()

models = space.models()
if now.model in models:
    card = models[now.model]
    with st.container(border=True, key="current"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.subheader(plain(card.title))
            if len(models) > 1:
                names = list(models)
                other = st.selectbox(
                    "Open models",
                    names,
                    index=names.index(now.model),
                    format_func=lambda k: f"{models[k].title} · {k.rsplit('-', 1)[-1]}",
                    width=320,
                    label_visibility="collapsed",
                    key=f"models-{now.revision}",
                )
                if other and other != now.model:
                    now.choose(other)
                    st.rerun()
        gallery.about(card, space.data_card(now.data) if now.data else None)
        show_figures(space.profile(now.model), space.baseline(now.model, now.data) if now.data else None)
        with st.container(horizontal=True):
            st.page_link(HERE / "inspect.py", label="Inspect its layers", icon=":material/account_tree:")
            if (HERE / "tune.py").exists():
                st.page_link(HERE / "tune.py", label="Tune it", icon=":material/tune:")

st.subheader("Samples")
st.caption("Small networks trained by this project. One click opens one with its data.")
gallery.show()

st.subheader("Your own")
st.caption("Files stay on this computer. A model alone is profiled; with data, its accuracy is measured too.")
left, right = st.columns(2, gap="large")
with left:
    model = uploads.model_form()
with right:
    data = uploads.data_form()
ready = bool(model) and data != {}
st.button(
    "Open model" if data is None else "Open model and data",
    type="primary",
    icon=":material/folder_open:",
    disabled=not ready,
    help=None if ready else "Give a model file, and a data file or another choice of images.",
    on_click=opening.start_upload,
    args=(model, data),
)
