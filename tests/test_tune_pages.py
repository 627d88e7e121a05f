"""Tune, Compare and Export on a workspace written by hand: what a click does to the recipe, and what the pages say."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
from streamlit.testing.v1 import AppTest

from app import export_view
from app.netron import LEASES
from app.state import KEY, State
from core.errors import StudioError
from core.jobs import JobStore
from core.recipe import Recipe
from core.workspace import Workspace
from tests.data_tables import column, data_tables
from tests.profiles import resnet
from tests.workspaces import CLASSES, write_workspace

ROOT = Path(__file__).resolve().parents[1]
INT8 = "recipe: 1\nseed: 0\nsteps:\n- quantize: {}\n"
PRUNED = "recipe: 1\nseed: 0\nsteps:\n- prune_channels: {ratio: 0.5}\n"
BOTH = "recipe: 1\nseed: 0\nsteps:\n- prune_channels: {ratio: 0.4}\n- quantize: {}\n"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(JobStore, "pump", lambda self: None)  # a job that is queued stays queued: no worker here
    return write_workspace(tmp_path, resnet(1), (INT8, PRUNED))


def open_page(page: str, technique: str = "", **query: str) -> AppTest:
    tab = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
    for name, value in query.items():
        tab.query_params[name] = value
    tab.run()
    tab.switch_page(f"../pages/{page}.py").run()
    if technique:
        tab.segmented_control(key="tab").set_value(technique).run()
    assert not tab.exception, tab.exception
    return tab


def state(tab: AppTest) -> State:
    found: State = tab.session_state[KEY]
    return found


def load(tab: AppTest, text: str) -> AppTest:
    tab.text_area(key=f"text-{state(tab).revision}").set_value(text).run()
    tab.button(key="use-recipe").click().run()
    assert not tab.exception, tab.exception
    return tab


def techniques(tab: AppTest) -> list[str]:
    return [step.technique for step in state(tab).recipe.steps]


def click(tab: AppTest, key: str) -> AppTest:
    tab.button(key=key).click().run()
    assert not tab.exception, tab.exception
    return tab


def words(tab: AppTest) -> str:
    kinds = (tab.markdown, tab.caption, tab.error, tab.info, tab.success, tab.toast)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def test_the_switch_puts_a_step_in_and_turns_it_off(space: Workspace) -> None:
    tab = open_page("tune")
    assert state(tab).recipe == Recipe()
    assert tab.button(key="run").disabled
    for wanted in (True, False):
        tab.toggle[0].set_value(wanted).run()
        assert [(s.technique, s.enabled) for s in state(tab).recipe.steps] == [("prune_channels", wanted)]
        assert tab.toggle[0].value == wanted


def test_the_switch_follows_the_strip_and_undo(space: Workspace) -> None:
    tab = load(open_page("tune"), BOTH)
    assert tab.toggle[0].value
    for key, shown in (("Switch off-0", False), ("Undo--1", True), ("Redo--1", False), ("Remove-0", False)):
        click(tab, key)
        assert tab.toggle[0].value == shown, key


@pytest.mark.parametrize("name", ["Factorize", "Quantize", "Distill"])
def test_every_tab_has_its_technique(space: Workspace, name: str) -> None:
    tab = open_page("tune", technique=name)
    tab.toggle[0].set_value(True).run()
    assert techniques(tab) == [name.lower()]


def test_options_change_the_recipe_and_undo_brings_them_back(space: Workspace) -> None:
    tab = open_page("tune", technique="Distill")
    tab.toggle[0].set_value(True).run()
    next(s for s in tab.slider if s.label == "Epochs").set_value(9).run()
    assert state(tab).recipe.steps[0].record.epochs == 9
    click(tab, "Undo--1")
    assert state(tab).recipe.steps[0].record.epochs == 5
    assert next(s for s in tab.slider if s.label == "Epochs").value == 5
    click(tab, "Redo--1")
    assert next(s for s in tab.slider if s.label == "Epochs").value == 9


def test_a_recipe_is_loaded_and_its_steps_move_and_go(space: Workspace) -> None:
    tab = load(open_page("tune"), "recipe: 1\nsteps:\n- distill: {}\n- prune_channels: {ratio: 0.4}\n- quantize: {}\n")
    assert techniques(tab) == ["distill", "prune_channels", "quantize"]
    click(tab, "Move down-0")
    assert techniques(tab) == ["prune_channels", "distill", "quantize"]
    assert tab.button(key="Move up-2").disabled  # quantize works on the file
    assert "must come last" in tab.button(key="Move up-2").help
    click(tab, "Remove-1")
    click(tab, "Switch off-0")
    assert [(s.technique, s.enabled) for s in state(tab).recipe.steps] == [
        ("prune_channels", False),
        ("quantize", True),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- just a list", "A recipe is a mapping with a list of steps; received list."),
        ("recipe: 1\nsteps:\n- melt: {}\n", "Unknown technique: received 'melt'"),
        ("recipe: 1\nsteps:\n- prune_channels: {ratio: 2}\n", "ratio was 2"),
        ("recipe: 1\nsteps:\n- prune_weights: {}\n  layers: {conv99: 0.1}\n", "names the layer 'conv99'"),
        ("recipe: 1\nsteps:\n- quantize: {}\n- distill: {}\n", "must come last"),
    ],
)
def test_a_wrong_recipe_is_refused_and_the_current_kept(space: Workspace, text: str, said: str) -> None:
    tab = load(open_page("tune"), BOTH)
    before = state(tab).recipe
    load(tab, text)
    assert said in tab.error[0].value
    assert state(tab).recipe == before


def test_run_queues_the_recipe_and_the_page_follows_it(space: Workspace) -> None:
    tab = load(open_page("tune"), BOTH)
    click(tab, "run")
    (job,) = JobStore(space).list()
    assert (job.kind, job.title) == ("run", "Prune channels 40% → Quantize int8")
    assert job.params == {"model": "net-1", "data": "pets-1", "recipe": Recipe.from_yaml(BOTH).to_yaml()}
    assert tab.button(key="cancel").label == "Cancel"
    assert tab.button(key="run").disabled  # not twice
    assert "being run" in words(tab)


def test_a_recipe_that_was_run_is_offered_and_not_run_again(space: Workspace) -> None:
    tab = load(open_page("tune"), INT8)
    assert tab.button(key="run").disabled
    assert "has been run" in words(tab)
    assert tab.button(key="open-made")


def test_two_steps_of_one_technique_can_each_be_tuned(space: Workspace) -> None:
    text = "recipe: 1\nsteps:\n- distill: {epochs: 2}\n- prune_channels: {}\n- distill: {epochs: 7}\n"
    tab = load(open_page("tune", technique="Distill"), text)
    epochs = next(s for s in tab.slider if s.label == "Epochs")
    assert epochs.value == 2
    tab.segmented_control(key="which-distill-2").set_value(1).run()
    epochs = next(s for s in tab.slider if s.label == "Epochs")
    assert epochs.value == 7
    epochs.set_value(8).run()
    assert [s.record.epochs for s in state(tab).recipe.steps if s.technique == "distill"] == [2, 8]


def test_compare_says_what_changed_and_how_sure_that_is(space: Workspace) -> None:
    name = f"made-{Recipe.from_yaml(PRUNED).id}"
    tab = open_page("compare", run=name, view="Classes")
    # the original is wrong on image 29, the candidate on images 0 and 1: two lost, one won, p = 1
    assert "Of 30 test images, 2 only the original got right and 1 only the candidate" in words(tab)
    assert "p = 1" in words(tab)


def test_compare_shows_the_pictures_that_changed(space: Workspace) -> None:
    name = f"made-{Recipe.from_yaml(PRUNED).id}"
    tab = open_page("compare", run=name, view="Changed answers")
    shown = [image.proto.imgs[0].caption for image in tab.get("image")]
    bird, cat, dog = CLASSES
    assert shown == [f"{bird} → {cat} (is {bird})", f"{bird} → {cat} (is {bird})", f"{bird} → {dog} (is {dog})"]


@pytest.mark.parametrize("view", ["Key figures", "Classes", "Changed answers", "Layers", "Graphs"])
def test_every_view_of_compare_runs(space: Workspace, view: str) -> None:
    tab = open_page("compare", view=view)
    assert not tab.error
    against = tab.selectbox(key="against")
    against.set_value(next(name for name in space.candidates() if name != state(tab).picked)).run()
    assert not tab.exception, tab.exception
    assert not tab.error


def test_missing_predictions_are_a_sentence(space: Workspace) -> None:
    for file in space.root.glob("candidates/*/predictions.npz"):
        file.unlink()
    tab = open_page("compare", view="Classes")
    assert "are not in the workspace" in tab.error[0].value


def test_export_lists_what_the_zip_will_hold(space: Workspace) -> None:
    tab = open_page("export")
    (table,) = data_tables(tab)
    assert column(table, "File")[:6] == [
        "model.onnx",
        "recipe.yaml",
        "MODEL_CARD.md",
        "card.json",
        "samples.npz",
        "verify.py",
    ]
    assert "test/images.npy" in column(table, "File")
    tab.toggle(key="test-pets-1").set_value(False).run()
    assert "test/images.npy" not in column(data_tables(tab)[0], "File")
    commands = "\n".join(block.value for block in tab.code)
    assert "python candidate/verify.py" in commands
    assert "cnn-studio run recipe.yaml" in commands


def test_a_large_zip_is_written_once_and_streamed_from_disk(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_view, "IN_MEMORY", 1000)
    tab = open_page("export")
    assert "needs the studio's server" in tab.info[0].value  # as when only main.py runs
    monkeypatch.setattr(LEASES, "served", True)
    tab.run()
    assert not tab.get("link_button")
    tab.toggle(key="test-pets-1").set_value(False).run()
    folder = space.folder("candidates", str(state(tab).picked))
    (folder / "bundle-1.zip").write_bytes(b"with other contents")
    click(tab, "prepare")
    (link,) = tab.get("link_button")
    lease = LEASES.get(link.proto.url.rpartition("/")[2])
    assert lease is not None
    assert lease.name == f"{state(tab).picked}.zip"
    assert [file.name for file in folder.glob("bundle-*")] == [lease.path.name]  # no half one, no earlier one
    with ZipFile(lease.path) as archive:
        assert archive.testzip() is None
        assert archive.read("model.onnx") == (folder / "model.onnx").read_bytes()
    assert lease.path.stat().st_size == int(lease.path.stem.removeprefix("bundle-"))
    written = lease.path.stat().st_mtime_ns
    tab.run()
    assert lease.path.stat().st_mtime_ns == written


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(members: object, out: Path) -> None:
        out.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.bundle.write_bundle", full)
    with pytest.raises(StudioError, match="cannot be written beside its candidate: No space left on device"):
        export_view.prepare((), tmp_path / "bundle-9.zip")
    assert not list(tmp_path.iterdir())
