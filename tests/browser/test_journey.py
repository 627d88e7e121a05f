"""The main job in a real browser: open a sample or files of one's own, tune, run, compare, download and verify."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from tests.shared_data import shared

MINUTE = 60_000  # ms; jobs import torch, export and measure


def go(page: Page, name: str) -> None:
    """Through the top navigation, as a person does."""
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible(timeout=MINUTE)


def open_digits(page: Page, studio: str) -> None:
    page.goto(studio)
    page.locator(".st-key-open-digits_lenet").get_by_role("button", name="Open").click(timeout=MINUTE)
    expect(page.locator(".st-key-current").get_by_text("LeNet on Digits").first).to_be_visible(timeout=5 * MINUTE)
    expect(page.locator(".st-key-current").get_by_text("verified").first).to_be_visible(timeout=3 * MINUTE)


def open_files(page: Page, studio: str, model: Path, data: Path) -> None:
    page.goto(studio)
    for number, file in enumerate((model, data)):
        page.locator("input[type=file]").nth(number).set_input_files(file, timeout=MINUTE)
        expect(page.get_by_role("button", name=f"Remove {file.name}")).to_be_visible(timeout=MINUTE)
    page.get_by_role("button", name="Open model and data").click(timeout=MINUTE)
    expect(page.locator(".st-key-current").get_by_text(model.stem).first).to_be_visible(timeout=5 * MINUTE)
    expect(page.locator(".st-key-current").get_by_text("verified").first).to_be_visible(timeout=3 * MINUTE)


def switch_on_and_run(page: Page, tab: str, technique: str) -> None:
    go(page, "Tune")
    page.get_by_role("radio", name=tab, exact=True).click()
    page.locator("label").filter(has_text=re.compile(f"^{technique}$")).last.click()
    run = page.locator(".st-key-run").get_by_role("button", name="Run")
    expect(run).to_be_enabled(timeout=MINUTE)
    run.click()
    expect(page.locator(".st-key-open-made").get_by_role("button").first).to_be_visible(timeout=5 * MINUTE)


def download(page: Page, folder: Path) -> Path:
    go(page, "Export")
    expect(page.get_by_text("verify.py").first).to_be_visible(timeout=MINUTE)
    with page.expect_download(timeout=MINUTE) as waiting:
        page.locator(".st-key-download").get_by_role("button").first.click()
    path = folder / "candidate.zip"
    waiting.value.save_as(path)
    return path


def test_pick_tune_run_compare_download_verify(page: Page, studio: str, tmp_path: Path) -> None:
    open_digits(page, studio)
    go(page, "Inspect")
    expect(page.frame_locator("iframe").first.locator("#target")).to_be_visible(timeout=MINUTE)
    switch_on_and_run(page, "Quantize", "Quantize")
    page.locator(".st-key-open-made").get_by_role("button").first.click()
    expect(page.get_by_role("heading", name="Compare", level=1)).to_be_visible(timeout=MINUTE)
    expect(page.get_by_text("verified").first).to_be_visible(timeout=MINUTE)
    go(page, "Runs")
    expect(page.get_by_text("Quantize int8").first).to_be_visible(timeout=MINUTE)
    check_download(page, tmp_path)


def test_own_files_are_pruned_downloaded_and_verified(page: Page, studio: str, tmp_path: Path) -> None:
    pictures = np.load(shared("mlperf_ic01.npz"))
    np.savez(tmp_path / "pictures.npz", x=pictures["x_test"], y=pictures["y_test"])
    open_files(page, studio, shared("checkpoints/resnet20_cifar10.onnx"), tmp_path / "pictures.npz")
    switch_on_and_run(page, "Prune", "Prune channels")
    check_download(page, tmp_path)


def check_download(page: Page, folder: Path) -> None:
    """The zip holds what it promises, and its script gives the page's numbers without the studio."""
    with zipfile.ZipFile(download(page, folder)) as archive:
        names = {Path(name).name for name in archive.namelist()}
        archive.extractall(folder / "candidate")
    assert {"model.onnx", "recipe.yaml", "MODEL_CARD.md", "verify.py"} <= names
    script = next((folder / "candidate").rglob("verify.py"))
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy" in done.stdout.lower()
