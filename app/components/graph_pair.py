"""Original and candidate in Netron side by side, with linked selection and scrolling."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
HTML = """
<div class="pair">
  <figure><figcaption>Against</figcaption><iframe title="Graph of the original model"></iframe></figure>
  <figure><figcaption>Candidate</figcaption><iframe title="Graph of the candidate"></iframe></figure>
</div>
"""
_PAIR = st.components.v2.component(
    "graph_pair",
    html=HTML,
    css=(HERE / "graph_pair.css").read_text(encoding="utf-8"),
    js=(HERE / "graph_pair.js").read_text(encoding="utf-8"),
)


def graph_pair(left: str, right: str, *, focus: str | None, sync: bool, key: str) -> str | None:
    """Show two addresses from `app.netron.graph_address`. Returns the name of the selected node.

    `focus` selects a layer in both; `sync` keeps selection and scrolling together.
    """
    data = {"left": left, "right": right, "focus": focus, "sync": sync}
    result = _PAIR(key=key, data=data, default={"node": None}, on_node_change=lambda: None)
    return str(result.node) if result.node else None
