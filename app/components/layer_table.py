"""The layer table of the Tune page: a slider per layer that repaints while it is dragged, with exact totals on top.

The browser does the sums (`costs.js` mirrors `core.predict.costs`) and Python hears about an edit on release. Every
push from Python carries a revision; an edit made against an older one is ignored, or the component's remembered state
would silently win over undo, load and reset.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

HERE = Path(__file__).parent
HTML = """
<div class="lt">
  <div class="figures" role="group" aria-label="Exact cost of this recipe"></div>
  <div class="box">
    <div class="all" role="group" aria-label="All layers"></div>
    <div class="scroll" tabindex="-1">
      <table role="table">
        <thead role="rowgroup"><tr role="row">
          <th scope="col" role="columnheader" class="name">Layer</th>
          <th scope="col" role="columnheader" class="share">
            <span class="key params"></span>Params <span class="key macs"></span>MACs
            <span class="for-loss"><span class="key loss"></span>Loss</span>
          </th>
          <th scope="col" role="columnheader" class="dial for-dial">Setting</th>
          <th scope="col" role="columnheader" class="number for-dial" aria-label="Value"></th>
          <th scope="col" role="columnheader" class="width">Result</th>
          <th scope="col" role="columnheader" class="on for-dial" aria-label="On or off"></th>
        </tr></thead>
        <tbody role="rowgroup"></tbody>
      </table>
    </div>
  </div>
  <output class="live" aria-live="polite"></output>
</div>
"""
SCRIPT = "\n".join(
    (HERE / name).read_text(encoding="utf-8")
    for name in ("costs.js", "memory.js", "why.js", "words.js", "layer_table.js")
)
STYLE = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("layer_table.css", "why.css"))
_TABLE = st.components.v2.component("layer_table", html=HTML, css=STYLE, js=SCRIPT)

STILL = ("profile", "original", "rows", "loss", "slower", "paying")  # large, and made once
_TEXTS: deque[tuple[dict[str, Any], str]] = deque(maxlen=16)  # what was last written of these


@dataclass(frozen=True)
class Edit:
    """What a person set: the dial of all layers, and the layers with a value of their own."""

    value: Any
    layers: Mapping[str, Any]


def layer_table(data: Mapping[str, Any], *, rev: int, key: str) -> tuple[Edit | None, frozenset[str] | None]:
    """Draw the table from `app.layer_rows.table_data`.

    Returns the last edit, and the rows that are locked, each None when it was not made against revision `rev`.
    """
    moving = {name: value for name, value in data.items() if name not in STILL}
    result = _TABLE(
        key=key,  # data in a list, since Streamlit imports pandas to look through a mapping's values
        data=[{**moving, "still": _text({name: data.get(name) for name in STILL}), "rev": rev}],
        default={"edit": None, "locks": None},
        on_edit_change=lambda: None,
        on_locks_change=lambda: None,
    )
    return read_edit(result.edit, rev), read_locks(result.locks, rev)


def read_edit(raw: Mapping[str, Any] | None, rev: int) -> Edit | None:
    """The browser's message, if it was made against revision `rev`."""
    if not raw or raw["rev"] != rev:
        return None
    return Edit(raw["value"], dict(raw["layers"]))


def read_locks(raw: Mapping[str, Any] | None, rev: int) -> frozenset[str] | None:
    """The rows that the browser says are locked, if it said so of revision `rev`."""
    return frozenset(raw["names"]) if raw and raw["rev"] == rev else None


def _text(parts: dict[str, Any]) -> str:
    """Parts as JSON, written once: Streamlit goes through data twice at every release, but hardly through a text."""
    for known, text in list(_TEXTS):
        if all(known[name] is part for name, part in parts.items()):
            return text
    text = json.dumps({name: part for name, part in parts.items() if part is not None})
    _TEXTS.appendleft((parts, text))
    return text
