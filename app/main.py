"""The router: page settings, navigation and the tab's state, before any page runs."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # Streamlit puts app/ on the path, not the project
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import state  # noqa: E402

PAGES = (
    ("library", "Library", ":material/folder_open:", "Pick a sample or upload a model and its data."),
    ("inspect", "Inspect", ":material/account_tree:", "Every layer: its size, its work, and the graph."),
    ("tune", "Tune", ":material/tune:", "Set the sliders and see what they cost before you run."),
    ("runs", "Runs", ":material/progress_activity:", "Jobs in progress and every candidate so far."),
    ("compare", "Compare", ":material/compare:", "Original and candidate side by side."),
    ("export", "Export", ":material/download:", "Download the optimized model with a script that verifies it."),
)

st.set_page_config(page_title="CNN Studio", page_icon=str(ROOT / "app/static/favicon.png"), layout="wide")
st.logo(str(ROOT / "app/static/logo.png"), size="large")
page = st.navigation(
    [
        st.Page(ROOT / "pages" / f"{key}.py", title=title, icon=icon, help=help, url_path=key, default=key == "library")
        for key, title, icon, help in PAGES
        if (ROOT / "pages" / f"{key}.py").exists()
    ],
    position="top",
)
# the path prefix as the browser sees it, '' or '/studio': right behind a proxy and with server.baseUrlPath
address = urlsplit(st.context.url or "").path.rstrip("/")
state.follow_link().base = address.removesuffix(f"/{page.url_path}" if page.url_path else "")
page.run()
