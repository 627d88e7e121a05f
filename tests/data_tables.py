"""The tables on a page under AppTest, as they reach the browser."""

from __future__ import annotations

import json
from typing import Any


def data_tables(tab: Any) -> list[dict[str, Any]]:
    """What each table draws: {"columns", "rows", …} of `app.components.data_table.table_data`."""
    parts = [part.proto for part in tab.get("bidi_component")]
    return [json.loads(proto.json)[0] for proto in parts if proto.component_name.endswith("data_table")]


def column(table: dict[str, Any], title: str) -> list[Any]:
    """The values of one column, as they are sorted by."""
    at = [head["title"] for head in table["columns"]].index(title)
    return [row["cells"][at][1] for row in table["rows"]]
