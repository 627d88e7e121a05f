"""Export: what the zip holds and how large it is, the download, and how to check and repeat it elsewhere."""

from pathlib import Path

import streamlit as st

from app import export_view
from app.empty import nothing_yet
from app.state import current, workspace
from core import bundle
from core.errors import StudioError

TUNE = Path(__file__).with_name("tune.py")

now, space = current(), workspace()
st.title("Export")
found = space.candidates(now.model, now.data) if now.model else {}
if not found:
    nothing_yet("Nothing to export yet", "Run a recipe: its file can then be downloaded here.", TUNE, "Go to Tune")
    st.stop()
try:
    now.picked = export_view.choose(found, now.picked)
    made = found[now.picked]
    export_view.summary(made)
    st.subheader("Contents")
    test = export_view.ask_test(space, made)
    members = bundle.contents(space, made.id, test=test)
    export_view.contents(members)
    export_view.download(space, made, members)
    st.subheader("Check it anywhere")
    export_view.how_to_verify(made)
    st.subheader("Make it again")
    export_view.how_to_repeat(space, made)
except StudioError as error:
    st.error(str(error))
