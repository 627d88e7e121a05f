"""The layer table in Chromium: its sums are those of the Python, and what is dragged reaches the recipe."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.components.layer_table import HERE, HTML, SCRIPT, STILL
from app.layer_rows import cost_profile, find, table_data
from app.tables import count, size
from core.catalog import CATALOG, Technique, option_fields
from core.layers import Profile
from core.predict import costs
from core.recipe import Recipe, Step
from tests.browser.conftest import running_studio
from tests.profiles import mixed, resnet
from tests.workspaces import write_workspace

expect.set_options(timeout=30_000)
MODEL_STEPS = ("prune_channels", "prune_weights", "factorize")
TOTALS = ("params", "macs", "weight_bytes", "nonzero", "exact", "peak_bytes", "peak_exact")
FILE_STEPS: tuple[list[str], ...] = ([], ["quantize"], ["quantize_weights"])


def random_value(chance: random.Random, entry: Technique, name: str) -> Any:
    spec = option_fields(entry)[name]
    about = spec.metadata
    if about["choices"]:
        return chance.choice(about["choices"])
    if isinstance(spec.default, bool):
        return chance.random() < 0.5
    low, high = about["low"], about["high"]
    # halves of a step meet the rounding rule: 0.25, 0.5 and 0.75 of an even number are where it matters
    value = chance.choice([low, high, 0.25, 0.5, 0.75, chance.uniform(low, high)])
    return type(spec.default)(min(high, max(low, value)))


def random_recipe(chance: random.Random, profile: Profile) -> Recipe:
    """A few steps in an allowed order, with options and layers of their own."""
    keys = [*chance.choices(MODEL_STEPS, k=chance.randint(0, 3)), *chance.choice(FILE_STEPS)]
    names = [layer.name for layer in profile.tunable]
    steps = []
    for key in keys:
        entry = CATALOG[key]
        options = {name: random_value(chance, entry, name) for name in option_fields(entry) if chance.random() < 0.7}
        own = chance.sample([*names, "block"], chance.randint(0, 4))
        layers = {name: random_value(chance, entry, str(entry.dial)) for name in own}
        steps.append(Step(key, options, layers, enabled=chance.random() < 0.9))
    return Recipe(tuple(steps))


def plain_steps(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"technique": s.technique, "options": asdict(s.record), "layers": dict(s.layers), "enabled": s.enabled}
        for s in recipe.steps
    ]


@pytest.mark.parametrize("profile", [mixed(), resnet(3)], ids=["mixed", "resnet20"])
def test_the_browser_computes_what_python_computes(page: Page, profile: Profile) -> None:
    chance = random.Random(7)
    recipes = [random_recipe(chance, profile) for _ in range(300)]
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in ("costs.js", "memory.js"))
    found = page.evaluate(
        f"([profile, all]) => {{ {script}; return all.map((steps) => costs(profile, steps)); }}",
        [json.loads(json.dumps(cost_profile(profile))), [plain_steps(recipe) for recipe in recipes]],
    )
    changed = 0
    for recipe, browser in zip(recipes, found, strict=True):
        python = costs(profile, recipe)
        totals = {key: getattr(python, key) for key in TOTALS}
        assert {key: browser[key] for key in totals} == totals, recipe.to_yaml()
        for row in python.layers:
            mirror = browser["layers"][row.name]
            sizes = {key: getattr(row, key) for key in ("params", "macs", "weight_bytes", "nonzero")}
            assert {key: mirror[key] for key in sizes} == sizes, row.name
            assert [mirror["widths"][0], mirror["widths"][-1]] == [row.in_channels, row.out_channels], row.name
        changed += python.params != profile.params
    assert changed > 150  # most recipes do something


RESNET = resnet(10)  # 64 rows
RUN = "recipe: 1\nseed: 0\nsteps:\n- quantize: {}\n"


@pytest.fixture(scope="module")
def studio_with_resnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("tune")
    write_workspace(root, RESNET, (RUN,))
    with running_studio(root) as address:
        yield address


@pytest.fixture
def tune(page: Page, studio_with_resnet: str) -> Page:
    """The Tune page of a new tab, its chart drawn."""
    page.set_default_timeout(90_000)
    page.goto(studio_with_resnet)
    page.get_by_role("link", name="Tune").first.click()
    page.wait_for_selector(".js-plotly-plot .main-svg")
    return page


def grab(page: Page, name: str, start: float, end: float) -> None:
    """Hold a slider's thumb at a share of its track and drag it to another, without letting go."""
    slider = page.get_by_role("slider", name=name, exact=True)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8 + start * (box["width"] - 16), y)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(box["x"] + 8 + (start + (end - start) * step / 5) * (box["width"] - 16), y)


def figure(page: Page, name: str) -> str:
    return page.get_by_role("group", name=name, exact=True).locator("b").inner_text()


def test_totals_follow_the_pointer_and_the_recipe_follows_the_release(tune: Page) -> None:
    before = figure(tune, "MACs")
    grab(tune, "Ratio, all layers", 0.0, 0.5)
    ratio = float(tune.get_by_role("slider", name="Ratio, all layers").input_value())
    assert 0.4 < ratio < 0.55
    exact = costs(RESNET, Recipe((Step("prune_channels", {"ratio": ratio}),)))
    assert figure(tune, "MACs") == count(exact.macs) != before  # the button is still down
    assert figure(tune, "Parameters") == count(exact.params)
    assert tune.get_by_text("No step yet").is_visible()
    tune.mouse.up()
    expect(tune.get_by_text(f"1. Prune channels {ratio:.0%}")).to_be_visible()
    expect(tune.get_by_text("this recipe")).to_be_visible()  # the chart has it too
    tune.get_by_role("button", name="Undo", exact=True).click()
    expect(tune.get_by_text("No step yet")).to_be_visible()
    expect(tune.get_by_role("slider", name="Ratio, all layers")).to_have_value("0")
    assert figure(tune, "MACs") == before


def test_coupled_layers_move_together_and_keep_their_own_value(tune: Page) -> None:
    grab(tune, "Ratio, conv1", 0.0, 0.6)
    own = tune.get_by_role("slider", name="Ratio, conv1").input_value()
    assert float(own) > 0.5
    expect(tune.get_by_role("slider", name="Ratio, layer1.0.conv2")).to_have_value(own)
    expect(tune.get_by_role("slider", name="Ratio, layer1.0.conv1")).to_have_value("0")
    tune.mouse.up()
    expect(tune.get_by_text("1 set by hand")).to_be_visible()
    everything = tune.get_by_role("slider", name="Ratio, all layers")
    everything.focus()
    for _ in range(20):
        tune.keyboard.press("ArrowRight")
    expect(tune.get_by_role("slider", name="Ratio, layer1.0.conv1")).to_have_value("0.2")
    expect(tune.get_by_role("slider", name="Ratio, conv1")).to_have_value(own)  # it holds
    expect(tune.get_by_text("1. Prune channels 20%")).to_be_visible()
    tune.get_by_role("button", name="All follow").click()
    expect(tune.get_by_role("slider", name="Ratio, conv1")).to_have_value("0.2")
    expect(tune.get_by_text("1 set by hand")).to_be_hidden()


def test_the_recipe_strip_is_named_for_those_who_cannot_see_its_icons(tune: Page) -> None:
    tune.get_by_role("switch", name="Prune channels", exact=True).press("Space")
    for name in ("Undo", "Redo", "Save as YAML", "Load a recipe", "Move up", "Move down", "Switch off", "Remove"):
        button = tune.get_by_role("button", name=name, exact=True)
        expect(button).to_be_visible()
        assert button.evaluate("button => button.offsetWidth") < 60  # the name is out of sight


def test_the_group_of_a_layer_is_drawn_with_what_holds_it(tune: Page) -> None:
    tune.get_by_role("button", name="About layer1.0.conv2", exact=True).click()
    drawn = tune.locator("figure.why:visible")
    lists = drawn.get_by_role("list")
    expect(lists).to_have_count(3)  # reads, moves together, read by
    expect(lists.nth(0)).to_have_text("layer1.0.conv1")
    expect(lists.nth(1).get_by_role("listitem").first).to_have_text("conv1")
    expect(drawn).to_contain_text("Removing 30 % would leave 11.2, which becomes 8.")
    tune.get_by_role("button", name="About layer1.0.conv2", exact=True).click()
    tune.get_by_role("button", name="About fc", exact=True).click()
    expect(drawn).to_contain_text("Answer")


def test_what_cannot_be_touched_is_off_and_says_why(tune: Page) -> None:
    last = tune.get_by_role("slider", name="Ratio, fc")
    last.scroll_into_view_if_needed()
    assert last.is_disabled()
    row = tune.get_by_role("row").filter(has=last)
    expect(row).to_contain_text("one for each class")
    tune.get_by_role("button", name="About fc").click()
    expect(tune.get_by_text("Linear layer: 64 → 10 channels")).to_be_visible()


def test_a_layer_is_switched_off_by_keyboard_and_says_its_value(tune: Page) -> None:
    everything = tune.get_by_role("slider", name="Ratio, all layers")
    everything.focus()
    for _ in range(50):
        tune.keyboard.press("ArrowRight")
    slider = tune.get_by_role("slider", name="Ratio, layer1.0.conv1")
    expect(slider).to_have_attribute("aria-valuetext", "50 %, 16 → 8")
    expect(tune.get_by_text("1. Prune channels 50%")).to_be_visible()
    switch = tune.get_by_role("switch", name="Change layer1.0.conv1")
    switch.focus()
    tune.keyboard.press("Space")
    expect(slider).to_have_attribute("aria-valuetext", "0 %, input 16 → 8")
    expect(tune.get_by_text("1 set by hand")).to_be_visible()
    tune.get_by_role("button", name="Let layer1.0.conv1 follow all layers").click()
    expect(slider).to_have_attribute("aria-valuetext", "50 %, 16 → 8")


def test_quantize_is_a_switch_per_layer(tune: Page) -> None:
    tune.get_by_role("radio", name="Quantize").click()
    everything = tune.get_by_role("switch", name="Bits, all layers")
    everything.click()
    expect(tune.get_by_text("1. Quantize int8")).to_be_visible()
    exact = costs(RESNET, Recipe((Step("quantize"),)))
    expect(tune.get_by_role("group", name="Weights", exact=True).locator("b")).to_have_text(size(exact.weight_bytes))
    tune.get_by_role("switch", name="Change conv1").click()
    expect(tune.get_by_text("1 set by hand")).to_be_visible()


def test_an_edit_outlives_other_pages_and_techniques(tune: Page) -> None:
    """Python does not send the table its own edits back: every way to see it again must show them all the same."""
    everything = tune.get_by_role("slider", name="Ratio, all layers")
    grab(tune, "Ratio, all layers", 0.0, 0.3)
    tune.mouse.up()
    expect(tune.get_by_text("1. Prune channels")).to_be_visible()
    grab(tune, "Ratio, all layers", float(everything.input_value()), 0.6)
    tune.mouse.up()
    value = everything.input_value()
    assert float(value) > 0.5
    expect(tune.get_by_text(f"1. Prune channels {float(value):.0%}")).to_be_visible()
    left = figure(tune, "MACs")

    def as_left() -> None:
        expect(everything).to_have_value(value)
        assert figure(tune, "MACs") == left

    tune.get_by_role("radio", name="Quantize").click()
    expect(tune.get_by_role("switch", name="Bits, all layers")).to_be_visible()
    tune.get_by_role("radio", name="Prune", exact=True).click()
    as_left()
    tune.get_by_role("link", name="Inspect").first.click()
    expect(everything).to_be_hidden()
    tune.get_by_role("link", name="Tune").first.click()
    as_left()
    tune.get_by_role("button", name="Undo", exact=True).click()
    expect(everything).not_to_have_value(value)
    tune.get_by_role("button", name="Redo", exact=True).click()
    as_left()


PUT_IN = """async ([script, html, data]) => {
  document.body.innerHTML = `<div id="first">${html}</div><div id="second">${html}</div><div id="third">${html}</div>`;
  const table = await import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })));
  const put = (id, data) => {
    const place = document.getElementById(id);
    table.default({ data: [data], parentElement: place, setStateValue: () => {} });
    return place.querySelector('.all input');
  };
  const slider = put('first', data);
  slider.value = 0.45;
  slider.dispatchEvent(new Event('input'));
  return [put('first', data), put('second', data), put('third', { ...data, rev: 2 })].map((input) => input.value);
}"""


def test_a_table_put_into_the_page_anew_goes_on_from_the_edit_until_python_says_otherwise(page: Page) -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.25}),))
    data = table_data(RESNET, recipe, find(recipe, "prune_channels"), "m")
    still = {name: data.pop(name) for name in STILL if name in data}
    found = page.evaluate(PUT_IN, [SCRIPT, HTML, {**data, "still": json.dumps(still), "rev": 1}])
    assert found == ["0.45", "0.45", "0.25"]
