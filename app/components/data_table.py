"""A table with units in its headings: a click on a heading sorts it, bars show shares of the largest, it can be saved
as CSV, and where asked to it says which row was picked.

Streamlit's own table would load pandas and Arrow into the web process: 83 MB and half a second for a page of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

HERE = Path(__file__).parent
HTML = """
<div class="dt">
  <div class="scroll" tabindex="0" role="group">
    <table><thead><tr></tr></thead><tbody></tbody></table>
  </div>
  <a class="save">Save as CSV</a>
</div>
"""
_TABLE = st.components.v2.component(
    "data_table",
    html=HTML,
    css=(HERE / "data_table.css").read_text(encoding="utf-8"),
    js=(HERE / "data_table.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True)
class Column:
    """One column. `words` turns its numbers into text; a column without is text already."""

    name: str  # of the row's value
    title: str = ""  # with the unit; the name where it says enough
    help: str = ""
    words: Callable[[Any], str] | None = None
    bar: bool = False  # each number as a share of the column's largest


def data_table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    key: str,
    alt: str,
    height: int = 440,
    pick: bool = False,
) -> str | None:
    """Draw it, at most `height` pixels high. Columns without any value are left out.

    With `pick`, rows have an "id", and that of the row just clicked is returned.
    """
    # in a list, since Streamlit looks through a mapping for data frames, and imports pandas to know one
    result = _TABLE(key=key, data=[table_data(columns, rows, alt, height, pick)], on_pick_change=lambda: None)
    return str(result.pick) if result.pick is not None else None


def table_data(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], alt: str, height: int = 440, pick: bool = False
) -> dict[str, Any]:
    """What `data_table.js` draws: each cell is [text, the value to sort by]."""
    known = [column for column in columns if any(row.get(column.name) is not None for row in rows)]
    heads = [{"title": c.title or c.name, "help": c.help, "number": c.words is not None, "bar": c.bar} for c in known]
    body = [{"id": row.get("id"), "cells": [_cell(column, row.get(column.name)) for column in known]} for row in rows]
    return {"alt": alt, "height": height, "pick": pick, "columns": heads, "rows": body}


def _cell(column: Column, value: Any) -> list[Any]:
    if value is None:
        return ["–", None]
    return [column.words(value) if column.words else str(value), value]
