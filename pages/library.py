"""Library: open a sample or bring a model with its data; what it is comes before any question."""

import streamlit as st

from app import gallery, opening, overview, state, uploads
from app.tables import plain

now = state.current()
st.title("Library")
st.caption("Open a convolutional network, see what it costs, and make it smaller and faster on the pages that follow.")
if notice := now.take_notice():
    st.error(plain(notice), icon=":material/info:")
opening.follow()

if now.model:
    overview.show(now, now.model)

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
