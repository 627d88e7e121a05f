"""Pages opened by their own address, as from a bookmark: no error is logged, and the address stays right."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect


def test_a_page_opens_by_its_own_address(page: Page, studio: str) -> None:
    page.goto(f"{studio}/runs")  # the fixture fails on any console error
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible(timeout=60_000)
    page.get_by_role("link", name="Export", exact=True).first.click()
    expect(page.get_by_role("heading", name="Export", level=1)).to_be_visible(timeout=60_000)
    expect(page).to_have_url(re.compile(rf"^{studio}/export(\?|$)"))
    page.go_back()
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible(timeout=60_000)


def test_the_first_page_has_a_name_too(page: Page, studio: str) -> None:
    page.goto(f"{studio}/library?model=none")
    expect(page.get_by_role("heading", name="Library", level=1)).to_be_visible(timeout=60_000)
    expect(page).to_have_url(re.compile(rf"^{studio}/(\?|$)"))
