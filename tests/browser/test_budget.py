"""A budget in Chromium: its slider moves the layers' sliders, a lock holds one, and each says what it costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import running_studio
from tests.forecasts import write_forecast
from tests.profiles import resnet
from tests.workspaces import write_workspace

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def studio_with_forecast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root, profile = tmp_path_factory.mktemp("budget"), resnet(3)
    write_forecast(write_workspace(root, profile), profile)
    with running_studio(root) as address:
        yield address


@pytest.fixture
def tune(page: Page, studio_with_forecast: str) -> Page:
    """The Tune page of a new tab, its budget open."""
    page.set_default_timeout(90_000)
    page.goto(studio_with_forecast)
    page.get_by_role("link", name="Tune").first.click()
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.get_by_text("Budget: let the studio set every layer").click()
    expect(budget(page)).to_be_visible()
    return page


def budget(page: Page) -> Locator:
    return page.get_by_role("slider", name="MACs, at most % of the original's")


def spend(page: Page, key: str) -> None:
    """By keyboard: Home is the smallest budget."""
    budget(page).focus()
    page.keyboard.press(key)


def test_one_slider_moves_every_layer_and_a_lock_holds_one(tune: Page) -> None:
    sliders = {name: tune.get_by_role("slider", name=f"Ratio, {name}", exact=True) for name in
               ("layer3.1.conv1", "layer3.2.conv1")}  # fmt: skip
    for slider in sliders.values():
        expect(slider).to_have_value("0")
    lock = tune.get_by_role("button", name="Lock layer3.2.conv1", exact=True)
    lock.scroll_into_view_if_needed()
    lock.click()
    expect(lock).to_have_attribute("aria-pressed", "true")
    spend(tune, "Home")
    expect(tune.get_by_text("Layer by layer")).to_be_visible()
    expect(sliders["layer3.1.conv1"]).not_to_have_value("0")
    expect(sliders["layer3.2.conv1"]).to_have_value("0")
    expect(lock).to_have_attribute("aria-pressed", "true")
    words = sliders["layer3.1.conv1"].get_attribute("aria-valuetext") or ""
    assert "alone costs about" in words
    assert "points (predicted)" in words
    expect(tune.locator(".st-key-predicted").get_by_text("predicted").first).to_be_visible()
    undo = tune.get_by_role("button", name="Undo", exact=True)
    expect(undo).to_have_count(1)  # Streamlit may still show the strip of before beside the new one
    undo.click()
    expect(sliders["layer3.1.conv1"]).to_have_value("0")
    lock.click()
    expect(lock).to_have_attribute("aria-pressed", "false")
    spend(tune, "ArrowRight")
    expect(sliders["layer3.2.conv1"]).not_to_have_value("0")


def test_a_layers_slider_stops_at_the_widths_that_pay(tune: Page) -> None:
    """The times written for this test fall with every block of 8 channels, of which the layer has 4."""
    slider = tune.get_by_role("slider", name="Ratio, layer2.0.conv1", exact=True)
    slider.focus()
    for key, value in (("ArrowRight", "0.25"), ("ArrowRight", "0.5"), ("ArrowLeft", "0.25")):
        tune.keyboard.press(key)
        expect(slider).to_have_value(value)
    expect(tune.get_by_role("row").filter(has=slider)).to_contain_text("32 → 24")
    tune.get_by_role("checkbox", name="A layer’s slider stops only at widths that gain time on this computer").uncheck()
    slider.focus()
    tune.keyboard.press("ArrowRight")
    expect(slider).to_have_value("0.26")


def test_memory_is_limited_beside_macs(tune: Page) -> None:
    second = tune.get_by_role("radiogroup", name="And at the same time")
    second.get_by_role("radio", name="Peak memory", exact=True).click()
    cap = tune.get_by_role("slider", name="Peak memory, at most % of the original's")
    cap.focus()
    tune.keyboard.press("Home")
    expect(tune.get_by_text("Layer by layer")).to_be_visible()
    shown = tune.get_by_role("group", name="Peak memory", exact=True)
    expect(shown).to_contain_text("exact")
    expect(shown).to_contain_text("of 197 kB")
    expect(shown.locator("b")).not_to_have_text("197 kB")
