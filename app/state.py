"""What one browser tab has chosen: model, data, recipe with its undo, picked candidate. The only code that touches
`st.session_state`; pages read and change the record that `current()` returns.

It is kept beside the widgets, not in them, so it survives a change of page; what matters is mirrored in the address
(`?model=…&run=…&job=…`), so that a link or a reload opens the same choice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import streamlit as st

from core.candidate import Candidate
from core.errors import StudioError
from core.jobs import Job, JobStore
from core.recipe import Recipe, Step
from core.workspace import Workspace

if TYPE_CHECKING:  # the first page has no use for predictions
    from core.budget import Offer
    from core.sensitivity_table import Key

KEY = "studio"
UNDO = 100  # recipes remembered per model


@dataclass
class History:
    """A recipe, what came before it and what was undone."""

    recipe: Recipe = field(default_factory=Recipe)
    past: list[Recipe] = field(default_factory=list)
    future: list[Recipe] = field(default_factory=list)


@dataclass
class State:
    """One tab's choice. Each model keeps its own recipe, since layers' names differ."""

    model: str | None = None
    data: str | None = None
    picked: str | None = None  # id of the candidate to compare and export
    job: str | None = None  # the opening that the Library follows
    base: str = ""  # path prefix of the studio's own addresses, as the browser sees them
    revision: int = 0  # grows when the page, not the layer table, changed the recipe
    given: tuple[tuple[object, ...], Step] | None = None  # the layer table, and its step as it was given to it
    histories: dict[str, History] = field(default_factory=dict)
    held: dict[str, frozenset[Key]] = field(default_factory=dict)  # model → sliders that a budget leaves alone
    budgets: dict[str, tuple[int, tuple[str, ...], str, int]] = field(default_factory=dict)
    # slider → percent, what may change, what is limited too and to which percent
    offers: dict[str, Offer] = field(default_factory=dict)  # what the last budget can buy
    seen: dict[str, str] = field(default_factory=dict)  # job → status when last shown
    uploads: int = 0  # grows when the upload forms are to be emptied
    notice: str = ""  # one sentence to show at the top of the next page, then forgotten

    def take_notice(self) -> str:
        notice, self.notice = self.notice, ""
        return notice

    @property
    def history(self) -> History:
        return self.histories.setdefault(self.model or "", History())

    @property
    def recipe(self) -> Recipe:
        return self.history.recipe

    @property
    def locks(self) -> frozenset[Key]:
        return self.held.get(self.model or "", frozenset())

    def lock(self, technique: str, names: Collection[str]) -> None:
        """Hold these layers' or groups' settings of one technique, and none of its others."""
        others = {key for key in self.locks if key[1] != technique}
        self.held[self.model or ""] = frozenset(others | {(name, technique) for name in names})

    def change(self, recipe: Recipe, *, from_table: bool = False) -> None:
        """Make `recipe` the current one. An edit that came from the layer table is not pushed back into it."""
        history = self.history
        if recipe == history.recipe:
            return
        history.past = [*history.past[1 - UNDO :], history.recipe]
        history.recipe, history.future = recipe, []
        self.revision += not from_table

    def undo(self) -> None:
        history = self.history
        if history.past:
            history.future.append(history.recipe)
            history.recipe = history.past.pop()
            self.revision += 1

    def redo(self) -> None:
        history = self.history
        if history.future:
            history.past.append(history.recipe)
            history.recipe = history.future.pop()
            self.revision += 1

    def choose(self, model: str, data: str | None = None) -> None:
        """Work on `model`, with `data` or with the data set it was last measured on."""
        if model != self.model:
            self.picked = None
        self.model, self.data = model, data or _data_for(workspace(), model)
        self.revision += 1

    def pick(self, candidate: Candidate) -> None:
        """Load a candidate: its model, its data and its recipe."""
        self.choose(candidate.model, candidate.data)
        self.change(Recipe.from_yaml(candidate.recipe))
        self.picked = candidate.id

    def changes(self, jobs: list[Job]) -> list[Job]:
        """The jobs that ended since this tab last looked; each is returned once."""
        ended = [job for job in jobs if not job.live and self.seen.get(job.id, job.status) != job.status]
        self.seen = {job.id: job.status for job in jobs}
        return ended


def workspace() -> Workspace:
    """The workspace all tabs share."""
    return Workspace()


def jobs() -> JobStore:
    return JobStore(workspace())


def current() -> State:
    """This tab's state. A first look takes the address, then the newest model of the workspace."""
    state: State = st.session_state.setdefault(KEY, State())
    space = workspace()
    if not _exists(space, "models", state.model):
        state.model = next(iter(space.models()), None)
        state.data = None
    if state.model and not _exists(space, "data", state.data):
        state.data = _data_for(space, state.model)
    if not _exists(space, "candidates", state.picked):
        state.picked = None
    return state


def follow_link() -> State:
    """Take what the address names when the tab is new; afterwards keep the address in step with the tab."""
    new = KEY not in st.session_state
    state: State = st.session_state.setdefault(KEY, State())
    space = workspace()
    if new:
        model, run = st.query_params.get("model"), st.query_params.get("run")
        if _exists(space, "models", model):
            state.choose(str(model))
        if _exists(space, "candidates", run):
            try:
                state.pick(space.candidate(str(run)))
            except StudioError as error:
                st.toast(str(error), icon=":material/link_off:")
        state.job = st.query_params.get("job")  # a reload goes on following an opening
    state = current()
    for name, value in (("model", state.model), ("run", state.picked), ("job", state.job)):
        if value and st.query_params.get(name) != value:
            st.query_params[name] = value
        elif not value and name in st.query_params:
            del st.query_params[name]
    return state


def _exists(space: Workspace, kind: str, name: str | None) -> bool:
    record = "candidate.json" if kind == "candidates" else "card.json"
    return bool(name) and (space.folder(kind, str(name)) / record).exists()


def _data_for(space: Workspace, model: str) -> str | None:
    """The data set the model was last measured on; without one, the newest whose images and classes fit it."""
    measured = sorted(
        space.folder("models", model).glob("baseline-*.json"), key=lambda f: f.stat().st_mtime, reverse=True
    )
    for file in measured:
        name = file.stem.removeprefix("baseline-")
        if _exists(space, "data", name):
            return name
    card = space.model_card(model)
    fitting = (k for k, d in space.data_sets().items() if d.name == card.data or len(d.classes) == len(card.classes))
    return next(fitting, None)
