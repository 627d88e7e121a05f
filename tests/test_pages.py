"""Every page runs in every state a person can bring it to, shows sentences and never a traceback."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.state import KEY
from core.jobs import JobStore
from core.recipe import Recipe, Step
from core.workspace import Workspace, write_json
from tests.data_tables import column, data_tables
from tests.profiles import resnet
from tests.studio import open_digits, run_int8
from tests.workspaces import write_workspace

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if path.stem != "__init__")


def studio(page: str, **query: str) -> AppTest:
    """The page as a new tab sees it, reached through the router."""
    tab = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
    for name, value in query.items():
        tab.query_params[name] = value
    tab.run()
    tab.switch_page(f"../pages/{page}.py").run()
    assert not tab.exception, tab.exception
    return tab


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr("app.uploads.local", lambda: True)  # as with the settings that the server reads
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    return Workspace()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("studio")
    opened = open_digits(root)
    return {"root": root, **opened, "candidate": run_int8(root, opened)}


@pytest.fixture
def full(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("CNN_STUDIO_HOME", str(made["root"]))
    return made


def words(tab: AppTest) -> str:
    """Everything the page says."""
    kinds = (tab.title, tab.header, tab.subheader, tab.markdown, tab.caption, tab.error, tab.info, tab.warning)
    links = [link.proto.label for link in tab.get("page_link")]
    return "\n".join([*(str(element.value) for kind in kinds for element in kind), *links])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_an_empty_workspace_says_what_to_do(page: str, empty: Workspace) -> None:
    tab = studio(page)
    assert tab.title[0].value == page.capitalize()
    if page != "library":
        assert "Library" in words(tab) or "Tune" in words(tab)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_a_model_and_a_candidate_runs(page: str, full: dict[str, Any]) -> None:
    tab = studio(page, run=full["candidate"])
    assert tab.title[0].value == page.capitalize()
    assert tab.session_state[KEY].model == full["model"]


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_something_that_is_gone_falls_back(page: str, full: dict[str, Any]) -> None:
    tab = studio(page, model="no-such-model", run="../../etc/passwd")
    assert tab.session_state[KEY].model == full["model"]
    assert tab.session_state[KEY].picked in (None, full["candidate"])  # a page may show the newest instead


def test_the_library_shows_the_figures_before_any_question(full: dict[str, Any]) -> None:
    tab = studio("library")
    figures = {metric.label: metric.value for metric in tab.metric}
    profile = Workspace().profile(full["model"])
    scores = Workspace().baseline(full["model"], full["data"])
    assert scores is not None
    assert scores.accuracy is not None
    assert figures["Accuracy"] == f"{100 * scores.accuracy.value:.2f} %"
    assert profile.params == 4_382 or figures["Parameters"].endswith("k")
    assert "verified" in words(tab)


def test_one_click_on_a_sample_opens_it(empty: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Any, str]] = []
    monkeypatch.setattr(JobStore, "submit", lambda self, *request: sent.append(request) or "no-job")
    tab = studio("library")
    tab.button(key="open-digits_lenet").click().run()
    assert not tab.exception
    assert sent == [
        (
            "open",
            {"model": {"kind": "sample", "name": "digits_lenet"}, "data": {"kind": "digits"}},
            "Open LeNet on Digits",
        )
    ]


def test_a_wrong_path_is_refused_in_a_sentence(empty: Workspace) -> None:
    tab = studio("library")
    tab.text_input(key="model_path_0").input("/no/such/model.onnx").run()
    tab.selectbox(key="images").select("None: count and time only").run()
    next(button for button in tab.button if button.label == "Open model").click().run()
    assert not tab.exception
    assert "There is no file '/no/such/model.onnx'" in tab.error[0].value.replace("\\", "")


def test_an_architecture_is_asked_for_only_where_weights_need_one(empty: Workspace) -> None:
    tab = studio("library")
    labels = [box.label for box in tab.selectbox]
    assert "Architecture of these weights" not in labels
    tab.text_input(key="model_path_0").input("/some/weights.PTH").run()
    assert "Architecture of these weights" in [box.label for box in tab.selectbox]


def test_the_choice_survives_a_change_of_page(full: dict[str, Any]) -> None:
    tab = studio("library")
    now = tab.session_state[KEY]
    recipe = Recipe((Step("prune_channels", {"ratio": 0.25}),))
    now.change(recipe)
    for page in ("inspect", "runs", "library"):
        tab.switch_page(f"../pages/{page}.py").run()
    assert tab.session_state[KEY].recipe == recipe


def test_a_link_opens_the_same_choice(full: dict[str, Any]) -> None:
    now = studio("runs", run=full["candidate"]).session_state[KEY]
    assert (now.model, now.data, now.picked) == (full["model"], full["data"], full["candidate"])
    assert now.recipe == Recipe((Step("quantize"),))


def test_a_reload_goes_on_following_an_opening(full: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobStore, "pump", lambda self: None)  # it stays in the queue
    store = JobStore(Workspace())
    job = store.submit("open", {"model": {}, "data": None}, "Open my net")
    tab = studio("library", job=job)
    assert "Open my net" in words(tab)
    assert [bar.proto.text for bar in tab.get("progress")] == ["Waiting to start"]
    store.cancel(job)
    assert "Open my net" not in words(studio("library", job="no-such-job"))


def test_undo_and_redo_walk_the_recipes(full: dict[str, Any]) -> None:
    now = studio("library").session_state[KEY]
    first, second = (Recipe((Step("prune_channels", {"ratio": ratio}),)) for ratio in (0.1, 0.2))
    now.change(first)
    revision = now.revision
    now.change(second, from_table=True)
    assert now.revision == revision
    now.undo()
    assert (now.recipe, now.revision) == (first, revision + 1)
    now.redo()
    assert now.recipe == second
    now.undo()
    now.undo()
    now.undo()
    assert now.recipe == Recipe()
    now.change(second)
    now.redo()
    assert now.recipe == second


def test_inspect_lists_every_layer_and_its_sums(full: dict[str, Any]) -> None:
    tab = studio("inspect")
    profile = Workspace().profile(full["model"])
    (table,) = data_tables(tab)
    assert column(table, "Layer") == [layer.name for layer in profile.layers]
    assert sum(column(table, "Parameters")) == profile.params
    assert round(sum(column(table, "MACs (millions)")) * 1e6) == profile.macs


def test_runs_lists_jobs_and_candidates(full: dict[str, Any]) -> None:
    tab = studio("runs")
    (table,) = data_tables(tab)
    assert [row["id"] for row in table["rows"]] == [full["candidate"]]
    said = words(tab)
    assert "Open LeNet on Digits" in said
    assert "Quantize int8" in said


@dataclass
class Opening:
    """A job that has brought model net-1; its data, which are away, come later."""

    space: Workspace
    job: str
    away: Path

    def say(self, **state: Any) -> None:
        write_json(self.space.root / "jobs" / self.job / "state.json", {"metrics": {"model": "net-1"}, **state})

    def finish(self) -> None:
        self.away.rename(self.space.folder("data", "pets-1"))
        self.say(status="done", result={"model": "net-1", "data": "pets-1"})


@pytest.fixture
def halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opening:
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(JobStore, "pump", lambda self: None)
    space = write_workspace(tmp_path, resnet(1))
    away = space.folder("data", "pets-1").rename(tmp_path / "pets-1")
    found = Opening(space, JobStore(space).submit("open", {"model": {}, "data": {}}, "Open my net"), away)
    found.say(status="queued", message="Reading the data")
    return found


def test_a_new_tab_waits_for_the_data_of_its_model(halfway: Opening) -> None:
    """A model is there before its data: a tab opened in between follows the opening, and shows what it brings."""
    tab = studio("library")
    assert (tab.session_state[KEY].data, tab.session_state[KEY].job) == (None, halfway.job)
    halfway.finish()
    tab.run()
    assert (tab.session_state[KEY].data, tab.session_state[KEY].job) == ("pets-1", None)


def test_tune_waits_for_the_data_of_its_model_too(halfway: Opening) -> None:
    """'Tune it' is there before the data are: the page says what it waits for, and goes on by itself."""
    tab = studio("tune")
    assert "Its data is being read and measured; see below." in words(tab)
    assert [bar.proto.text for bar in tab.get("progress")] == ["Open my net · Reading the data"]
    halfway.finish()
    tab.run()
    assert "Move a slider or switch a step on, then run the recipe." in words(tab)
    assert not tab.get("progress")


def test_tune_says_why_the_data_of_its_model_did_not_come(halfway: Opening) -> None:
    tab = studio("tune")
    halfway.say(status="failed", error="The test images differ from the training images.", ended=time.time())
    tab.run()
    assert "Open my net: The test images differ from the training images." in words(tab)
    assert "Add data to this model in the Library to run recipes." in words(tab)
