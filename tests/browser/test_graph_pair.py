"""Original and candidate in Netron: selecting a node in one graph selects it in the other and tells Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from playwright.sync_api import Page, expect

from tests.browser.conftest import running_studio
from tests.profiles import Flow, layer, whole
from tests.workspaces import write_workspace

expect.set_options(timeout=30_000)
SELECTED = re.compile(r"\bselect\b")


def write_onnx(path: Path, names: tuple[str, ...]) -> None:
    """A chain of Relu nodes with these names."""
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=name) for i, name in enumerate(names)]
    ends = [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["n", 3, 8, 8]) for v in ("v0", f"v{len(names)}")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def studio_with_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("graphs")
    profile = whole(
        tuple(layer(name, "conv", (3, 3), 1, (8, 8), "") for name in ("conv1", "conv2", "conv3")),
        (),
        Flow(4 * 3 * 8 * 8),
    )
    space = write_workspace(root, profile, ("recipe: 1\nsteps:\n- quantize: {}\n",))
    write_onnx(space.folder("models", "net-1") / "model.onnx", ("conv1", "conv2", "conv3"))
    (name,) = space.candidates()
    # the exporter keeps a layer's name, or puts something behind it
    write_onnx(space.folder("candidates", name) / "model.onnx", ("conv1", "conv2_quant", "extra", "conv3"))
    with running_studio(root) as address:
        yield address


def test_selection_is_linked(page: Page, studio_with_graphs: str) -> None:
    page.set_default_timeout(90_000)
    page.goto(studio_with_graphs)
    page.get_by_role("link", name="Compare").first.click()
    page.get_by_role("radio", name="Graphs").click()
    frames = [page.frame_locator(f"iframe[title='{title}']") for title in
              ("Graph of the original model", "Graph of the candidate")]  # fmt: skip
    for frame, count in zip(frames, (3, 4), strict=True):
        expect(frame.locator("g.node")).to_have_count(count + 2)  # with input and output
    for frame in page.locator("iframe[title^='Graph of']").all():
        expect(frame).to_have_attribute("data-ready", "1")
    relus = [frame.locator("g.node", has_text="Relu") for frame in frames]
    relus[0].nth(2).click()
    expect(page.get_by_text("Selected: conv3")).to_be_visible()
    expect(relus[1].nth(3)).to_have_class(SELECTED)
    page.get_by_role("combobox", name="Jump to layer").click()
    page.get_by_role("option", name="conv2").click()
    for nodes in relus:
        expect(nodes.nth(1)).to_have_class(SELECTED)  # conv2, and conv2_quant
