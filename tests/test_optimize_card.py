"""The automatic recipe on the Runs page: what the form orders, and what is shown while and after it is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.state import KEY
from core.jobs import JobStore
from core.recipe import Recipe
from core.workspace import Workspace, write_json
from tests.data_tables import column, data_tables
from tests.profiles import resnet
from tests.workspaces import write_workspace

ROOT = Path(__file__).resolve().parents[1]
INT8 = "recipe: 1\nseed: 0\nsteps:\n- quantize: {}\n"
MADE = f"made-{Recipe.from_yaml(INT8).id}"
ORDER = {"model": "net-1", "data": "pets-1", "drop": 0.005, "objective": "latency", "minutes": 5}
ROWS = [
    {"title": "Quantize int8", "loss": 0.001, "size_bytes": 90_000, "macs": 3_000_000, "speedup": 2.1, "kept": True,
     "why": "Best so far.", "candidate": MADE, "seconds": 4.0},
    {"title": "Prune channels 30%", "loss": 0.031, "size_bytes": 60_000, "macs": 2_000_000, "speedup": None,
     "kept": False, "why": "Loses 3.10 points, allowed are 0.5.", "candidate": "", "seconds": 5.0},
]  # fmt: skip


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(JobStore, "pump", lambda self: None)  # a job that is queued stays queued: no worker here
    return write_workspace(tmp_path, resnet(1), (INT8,))


def runs() -> AppTest:
    tab = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60).run()
    tab.switch_page("../pages/runs.py").run()
    assert not tab.exception, tab.exception
    return tab


def words(tab: AppTest) -> str:
    return "\n".join(str(e.value) for kind in (tab.markdown, tab.caption, tab.error) for e in kind)


def job(space: Workspace, status: str, **more: Any) -> str:
    """A search that is as far as `status` and `more` say."""
    store = JobStore(space)
    name = store.submit("optimize", ORDER, "Optimize A Net for speed")
    state = {
        "status": status,
        "fraction": 0.4,
        "message": "Trial 3, Prune channels 15%: Repairing conv1",
        "metrics": {},
    }
    write_json(store.root / name / "state.json", state | more)
    return name


def test_one_click_orders_the_search(space: Workspace) -> None:
    tab = runs()
    assert [box.label for box in tab.number_input][:2] == ["Allowed loss (points of accuracy)", "Minutes"]
    tab.number_input(key="drop-True").set_value(1.0)
    tab.segmented_control(key="goal").set_value("size")
    tab.button(key="find").click().run()
    assert not tab.exception, tab.exception
    found = JobStore(space).list()[0]
    assert found.kind == "optimize"
    assert found.params == {**ORDER, "drop": 0.01, "objective": "size"}
    assert found.title == "Optimize A Net for file size"


def test_while_it_runs_the_best_so_far_is_there_and_the_form_is_not(space: Workspace) -> None:
    job(space, "queued", metrics={"best": MADE, "trials": ROWS})
    tab = runs()
    assert not [button for button in tab.button if button.key == "find"]
    said = words(tab)
    assert "Best so far: **Quantize int8**" in said
    assert "agreement on 30 test images" in said
    table = data_tables(tab)[0]
    assert column(table, "Recipe") == ["* Quantize int8", "Prune channels 30%"]
    assert column(table, "Points lost") == pytest.approx([0.1, 3.1])
    assert column(table, "Result")[1] == "Loses 3.10 points, allowed are 0.5."
    tab.button(key="stop-search").click().run()
    assert JobStore(space).list()[0].status == "cancelled"


@pytest.mark.parametrize(("found", "word"), [(True, "Best found"), (False, "Nearest")])
def test_afterwards_it_says_why_it_ended_and_leads_to_the_file(space: Workspace, found: bool, word: str) -> None:
    result = {"candidate": MADE, "found": found, "reason": "The time is up.", "trials": ROWS}
    job(space, "done", result=result, metrics={"best": MADE, "trials": ROWS})
    tab = runs()
    assert "The time is up." in words(tab)
    assert f"{word}: **Quantize int8**" in words(tab)
    assert tab.button(key="find")
    tab.button(key="best-export").click().run()
    assert not tab.exception, tab.exception
    assert tab.session_state[KEY].picked == MADE
    assert tab.title[0].value == "Export"


@pytest.mark.parametrize(
    ("status", "sentence"), [("cancelled", "What was verified until then is kept."), ("failed", "The worker ended.")]
)
def test_a_search_that_ended_early_says_so(space: Workspace, status: str, sentence: str) -> None:
    job(space, status, error="The worker ended." if status == "failed" else "", metrics={"best": MADE, "trials": ROWS})
    tab = runs()
    assert sentence in words(tab)
    assert "Quantize int8" in words(tab)
