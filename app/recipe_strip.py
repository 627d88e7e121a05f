"""What the Tune page draws on its right: run, the recipe as a strip of steps, and the files measured so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import streamlit as st

from app import front_view, layer_rows, opening, tables
from app.state import State, jobs, workspace
from app.tune_view import change
from core.errors import RecipeError
from core.jobs import Job
from core.layers import Profile
from core.recipe import Recipe

FILE = "recipe.yaml"
SHOWN_FOR = 600.0  # seconds a run that ended stays on the page
# Icon buttons keep their names, out of sight: without a label Streamlit would have them read "arrow_upward icon".
NAMES_OUT_OF_SIGHT = """<style>:is(.st-key-recipe-tools, [class*="st-key-step-"]) button p {
position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }</style>"""


def run_button(now: State) -> None:
    """Run the recipe as a job, or open what it made before."""
    made = layer_rows.made_by(workspace().candidates(now.model, now.data), now.recipe) if now.data else None
    order = {"model": now.model, "data": now.data, "recipe": now.recipe.to_yaml()}
    waiting = any(job.live and job.params == order for job in jobs().list())
    why = _why_not_run(now, made, waiting)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Run",
            type="primary",
            icon=":material/play_arrow:",
            shortcut="Ctrl+Enter",
            key="run",
            disabled=bool(why),
            help="Apply the recipe, export the file and measure it on the test images.",
        ):
            jobs().submit("run", order, now.recipe.title)
            st.rerun()  # the whole page, which then follows the job
        if made and st.button("Open its result", icon=":material/compare:", key="open-made"):
            now.picked = made
            st.switch_page("../pages/compare.py")
    if why:
        st.caption(why)


def _why_not_run(now: State, made: str | None, waiting: bool) -> str:
    """Why there is nothing to run; "" when there is."""
    if any(job.live for job in _openings(now)):
        return "Its data is being read and measured; see below."
    if now.data is None:
        return "Add data to this model in the Library to run recipes."
    if not now.recipe.active:
        return "Move a slider or switch a step on, then run the recipe."
    if waiting:
        return "This recipe is being run; see below."
    return "This very recipe has been run on this model and data already." if made else ""


def strip(now: State, profile: Profile) -> None:
    """One card per step, in order, and what can be done with the whole recipe."""
    st.html(NAMES_OUT_OF_SIGHT)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown("**Recipe**")
        with st.container(horizontal=True, gap="small", width="content", key="recipe-tools"):
            history = now.history
            _icon("Undo", ":material/undo:", now.undo, disabled=not history.past)
            _icon("Redo", ":material/redo:", now.redo, disabled=not history.future)
            # made on the click: a file made on every rerun is gone when the browser looks for it after the next one
            st.download_button(
                "Save as YAML", now.recipe.to_yaml, FILE, "application/yaml", icon=":material/save:",
                help="Save as YAML", on_click="ignore", key="save", type="tertiary", disabled=not now.recipe.steps,
            )  # fmt: skip
            load(now, profile)
    if not now.recipe.steps:
        st.caption("No step yet: the file stays as it is.")
        return
    with st.container(border=True, gap="xsmall"):
        for at in range(len(now.recipe.steps)):
            _step(now, at)


def _step(now: State, at: int) -> None:
    """One row: what the step does, and the buttons that move it, switch it and take it out."""
    step = now.recipe.steps[at]
    own = f" · {len(step.layers)} set by hand" if step.layers else ""
    text = f"{at + 1}\\. {step.title}{own}"
    with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="xsmall", key=f"step-{at}"):
        st.markdown(text if step.enabled else f"~~{text}~~", width="stretch")
        _icon("Move up", ":material/arrow_upward:", partial(_move, now, at, -1), at, why=_order(now.recipe, at, -1))
        _icon("Move down", ":material/arrow_downward:", partial(_move, now, at, 1), at, why=_order(now.recipe, at, 1))
        name, icon = ("Switch off", "on") if step.enabled else ("Switch on", "off")
        _icon(name, f":material/toggle_{icon}:", partial(_toggle, now, at), at)
        _icon("Remove", ":material/close:", partial(_remove, now, at), at)


def _icon(
    name: str, icon: str, click: Callable[[], None], at: int = -1, *, why: str | None = None, disabled: bool = False
) -> None:
    """A small button; `why` says why it is off."""
    st.button(
        name,
        icon=icon,
        help=why or name,
        key=f"{name}-{at}",
        on_click=click,
        type="tertiary",
        disabled=disabled or bool(why),
    )


def _order(recipe: Recipe, at: int, by: int) -> str | None:
    """Why the step cannot go there; None when it can."""
    if not 0 <= at + by < len(recipe.steps):
        return "It is the first step." if by < 0 else "It is the last step."
    try:
        layer_rows.move(recipe, at, by)
    except RecipeError as error:
        return str(error)
    return None


def _move(now: State, at: int, by: int) -> None:
    change(now, lambda: layer_rows.move(now.recipe, at, by))


def _toggle(now: State, at: int) -> None:
    steps = list(now.recipe.steps)
    steps[at] = replace(steps[at], enabled=not steps[at].enabled)
    change(now, lambda: now.recipe.with_steps(*steps))


def _remove(now: State, at: int) -> None:
    change(now, lambda: now.recipe.with_steps(*now.recipe.steps[:at], *now.recipe.steps[at + 1 :]))


def load(now: State, profile: Profile) -> None:
    """Take a recipe from a file or pasted text. A wrong one is refused in a sentence, and the current one kept."""
    with st.popover("Load a recipe", icon=":material/upload:", help="Load a recipe", type="tertiary", key="load"):
        file = st.file_uploader("Recipe file", ["yaml", "yml"], key=f"file-{now.revision}", max_upload_size=1)
        pasted = st.text_area(
            "or paste it", key=f"text-{now.revision}", placeholder="recipe: 1\nsteps:\n- quantize: {}"
        )
        if not st.button("Use this recipe", key="use-recipe", disabled=not (file or pasted.strip())):
            return
        try:
            text = file.getvalue().decode("utf-8", "replace") if file else pasted
            recipe = layer_rows.check_layers(profile, Recipe.from_yaml(text))
        except RecipeError as error:
            st.error(str(error))
            return
    now.change(recipe)
    st.rerun()


def chart(now: State, profile: Profile) -> None:
    """Every file measured so far, what is predicted, and where the recipe at the sliders will be."""
    original = workspace().baseline(now.model or "", now.data or "") if now.data else None
    if original is None:
        st.caption("Measured files appear here as a chart once the model has been scored on data.")
        return
    found = workspace().candidates(now.model, now.data)
    axis = front_view.choose_axis("axis")
    info = front_view.with_recipe(front_view.gather(now, axis, found, original), now, profile)
    front_view.badges(info, original)
    front_view.draw(info, now, found, "front")
    front_view.tell(info, now, found)
    st.caption(front_view.caption(info))


def followed(now: State) -> Job | None:
    """The run of this model to show: a live one, the first in line before others, or one that ended just now. Without
    data it is the opening that brings them, or could not."""
    kinds = ("run", "sensitivity")
    runs = [job for job in jobs().list() if job.kind in kinds and job.params.get("model") == now.model]
    runs += _openings(now)
    live = [job for job in runs if job.live]
    recent = [job for job in runs if job.ended and time.time() - job.ended < SHOWN_FOR]
    return next(iter(live[::-1] or recent), None)


def _openings(now: State) -> list[Job]:
    return [job for job in jobs().list() if opening.brings(job, now.model)] if now.data is None else []


def progress(now: State, job: Job) -> None:
    """One line for a run: how far it is, or how it ended."""
    title = tables.plain(job.title)
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.live:
            left = "" if job.seconds_left is None else f" · {tables.duration(job.seconds_left)} left"
            st.progress(job.fraction, f"{title} · {tables.plain(job.message)}{left}")
            st.button("Cancel", icon=":material/stop:", key="cancel", on_click=jobs().cancel, args=(job.id,))
        elif job.status == "done":
            st.markdown(f":green-badge[:material/check: Done] {title}", width="stretch")
            made = (job.result or {}).get("candidate")
            if made and st.button("Compare", icon=":material/compare:", key="compare"):
                now.picked = str(made)
                st.switch_page("../pages/compare.py")
        else:
            st.markdown(
                f":red-badge[{job.status.capitalize()}] {title}: {tables.plain(job.error or job.message)}",
                width="stretch",
            )
        st.page_link("../pages/runs.py", label="All runs", icon=":material/progress_activity:")
