"""The table component: what reaches the browser, and that no table loads pandas into the web process."""

from __future__ import annotations

import subprocess
import sys

from app.columns import LAYERS
from app.components.data_table import Column, table_data
from tests.data_tables import column


def test_cells_are_words_with_the_value_to_sort_by_and_empty_columns_are_left_out() -> None:
    columns = (Column("Name"), Column("Time", "Time (ms)", "How long.", "{:.2f}".format, bar=True), Column("Never"))
    table = table_data(
        columns, [{"id": "a", "Name": "x", "Time": 1.234}, {"id": "b", "Name": "y", "Time": None}], "Two"
    )
    assert [head["title"] for head in table["columns"]] == ["Name", "Time (ms)"]
    assert [head["number"] for head in table["columns"]] == [False, True]
    assert table["rows"] == [
        {"id": "a", "cells": [["x", "x"], ["1.23", 1.234]]},
        {"id": "b", "cells": [["y", "y"], ["–", None]]},
    ]
    assert column(table, "Time (ms)") == [1.234, None]


def test_layers_show_units() -> None:
    (row,) = table_data(LAYERS, [{"Layer": "conv1", "Parameters": 2304, "MACs": 1.5}], "")["rows"]
    assert [text for text, _ in row["cells"]] == ["conv1", "2.30 k", "1.50"]


def test_the_start_of_the_server_loads_neither_plotly_nor_numpy_and_charts_get_the_theme_later() -> None:
    code = (
        "import sys, app.server, app.plot\n"
        "late = [m for m in ('plotly.basedatatypes', 'numpy', 'pandas', 'torch') if m in sys.modules]\n"
        "assert not late, late\n"
        "app.plot._set_theme()\n"
        "import plotly.io\n"
        "assert plotly.io.templates.default == 'streamlit'\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
