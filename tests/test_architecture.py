"""The shape of the project, held by tests: who may import whom, and how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "torch_pruning", "safetensors"}
FILES = sorted(p for top in ("app", "core", "pages", "sample_models") for p in (ROOT / top).rglob("*.py"))


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_point_one_way(path: Path) -> None:
    """pages → app → core, and the engine is the workers' alone."""
    place = path.relative_to(ROOT).parts
    banned = {
        "core": {"app", "pages", "streamlit", "plotly"},
        "app": {"pages"},
        "pages": {"core.engine"},
        "sample_models": {"app", "pages", "streamlit"},
    }[place[0]]
    assert not {name for name in imports(path) if name in banned or name.split(".")[0] in banned}
    if place[0] in ("app", "pages") and path.name != "cli.py":
        assert not [name for name in imports(path) if name.startswith("core.engine")]


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_tensors_stay_in_the_engine(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    if place[:2] == ("core", "engine") or (place[0] == "sample_models" and path.name != "__init__.py"):
        pytest.skip("the engine and its sample networks are where tensors live")
    assert not tops(path) & HEAVY


def test_a_technique_imports_no_other_technique() -> None:
    found = [
        (path.name, name)
        for path in (ROOT / "core/engine/techniques").glob("*.py")
        for name in imports(path)
        if name.startswith("core.engine.techniques") and path.name != "__init__.py"
    ]
    assert not found


@pytest.mark.parametrize("module", ["app.main", "app.server", "core.workspace", "core.jobs", "sample_models"])
def test_the_web_process_imports_no_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    if module == "app.main":  # a script: run as Streamlit runs it, with its pages
        code = (
            "import sys; from streamlit.testing.v1 import AppTest; at = AppTest.from_file('app/main.py')"
            ".run(timeout=60)"
            f"; assert not at.exception, at.exception; print(sorted(set(sys.modules) & {HEAVY!r}))"
        )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "HOME": str(tmp_path), "CNN_STUDIO_HOME": str(tmp_path / "space")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_only_state_touches_the_session(path: Path) -> None:
    if path == ROOT / "app/state.py":
        pytest.skip("it is the one that may")
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    assert not [node.lineno for node in tree if isinstance(node, ast.Attribute) and node.attr == "session_state"]


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_nothing_is_long(path: Path) -> None:
    """Files at most 250 lines, pages 80, functions 40."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (80 if path.parent.name == "pages" else 250)
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno and f.end_lineno - f.lineno >= 40}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_every_module_says_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree)
