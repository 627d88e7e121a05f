"""The command line: the same candidate as the same clicks, and one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import core
from app import cli
from core.engine import latency, tasks
from core.engine.formats import onnx_writer
from core.recipe import Recipe, Step
from core.workspace import Workspace
from tests.tiny import CARD, draw, tiny_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "FEWEST", 5)


@pytest.fixture
def brought(tmp_path: Path) -> dict[str, Path]:
    """A model, data and a recipe as a user has them."""
    onnx_writer.export(tiny_model().module, CARD, tmp_path / "net.onnx")
    images = draw(200, 5)
    np.savez(tmp_path / "pets.npz", x=images.x, y=images.y)
    (tmp_path / "recipe.yaml").write_text(Recipe((Step("quantize"),)).to_yaml())
    return {name: tmp_path / name for name in ("net.onnx", "pets.npz", "recipe.yaml")}


def run_arguments(brought: dict[str, Path], space: Path, out: Path) -> list[str]:
    return [
        "run", "--workspace", str(space), str(brought["recipe.yaml"]), "--model", str(brought["net.onnx"]),
        "--data", str(brought["pets.npz"]), "--out", str(out), "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25",
    ]  # fmt: skip


def test_run_gives_what_the_studios_worker_gives(
    brought: dict[str, Path], tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(run_arguments(brought, tmp_path / "mine", tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    clicked = Workspace(tmp_path / "clicked")
    source = {"kind": "file", "path": str(brought["net.onnx"]), "mean": [0.5] * 3, "std": [0.25] * 3}
    opened = {"model": source, "data": {"kind": "file", "path": str(brought["pets.npz"])}}
    ids = tasks.open_pair(clicked, opened, lambda *_, **__: None)
    recipe = brought["recipe.yaml"].read_text()
    name = tasks.run_recipe(clicked, {**ids, "recipe": recipe}, lambda *_, **__: None)["candidate"]
    made = json.loads((tmp_path / "out" / "candidate.json").read_text())
    assert made["id"] == name
    ours, theirs = tmp_path / "out" / "model.onnx", clicked.folder("candidates", name) / "model.onnx"
    assert ours.read_bytes() == theirs.read_bytes()
    assert brought["net.onnx"].exists()
    assert name in Workspace(tmp_path / "mine").candidates()
    candidate = clicked.candidate(name)
    assert candidate.scores.accuracy is not None
    for text in (f"{100 * candidate.scores.accuracy.value:.2f}", f"{candidate.scores.params:,}", str(ours)):
        assert text in printed


def test_optimize_prints_what_it_tried_and_writes_what_export_offers(
    brought: dict[str, Path], tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, space = tmp_path / "out", tmp_path / "space"
    given = ["optimize", str(brought["net.onnx"]), "--workspace", str(space), "--data", str(brought["pets.npz"])]
    more = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--minutes", "0.01", "--max-drop", "5"]
    assert cli.main([*given, *more, "--for", "size", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "* Quantize int8" in printed
    assert "Allowed are 5 points of accuracy." in printed
    assert "The time is up." in printed
    made = json.loads((out / "candidate.json").read_text())
    with zipfile.ZipFile(out / "candidate.zip") as archive:
        assert archive.read("model.onnx") == (out / "model.onnx").read_bytes()
        assert {"verify.py", "recipe.yaml", "card.json", "test/images.npy"} <= set(archive.namelist())
    assert made["id"] in Workspace(space).candidates()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["x.onnx"], "Give images to measure on with --data"),
        (["digits_lenet", "--for", "beauty"], "received 'beauty', accepted are latency, size, macs"),
        (["digits_lenet", "--max-drop", "-1"], "allowed loss is -1 points; accepted are 0 to below 100"),
        (["digits_lenet", "--minutes", "0"], "The time is 0 minutes; accepted is more than 0"),
    ],
)
def test_an_impossible_wish_is_refused_before_anything_is_opened(
    more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.onnx").touch()
    more = [str(tmp_path / name) if name == "x.onnx" else name for name in more]
    assert cli.main(["optimize", "--workspace", str(tmp_path / "space"), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_profile_prints_every_layer_and_the_total(
    brought: dict[str, Path], tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", "--workspace", str(tmp_path / "space"), str(brought["net.onnx"])]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert set(rows) >= {"stem", "block.0", "block.2", "down", "head", "total"}
    assert rows["down"][1:4] == ["conv", "3,480", "124,416"]
    assert rows["total"][2] == f"{62_208 + 663_552 + 124_416 + 96:,}"


def test_the_studio_says_itself_where_it_is_instead_of_streamlit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit's greeting comes with an offer to its own developers that would lie over the Run button."""
    from app import server

    seen: list[dict[str, object]] = []
    monkeypatch.setattr(type(server.app), "run", lambda self, config: seen.append(config))
    monkeypatch.setattr("sys.argv", ["cnn-studio"])
    cli.main(["studio", "--port", "8777", "--no-browser"])
    assert capsys.readouterr().out == "CNN Studio is at http://127.0.0.1:8777 until Ctrl+C ends it.\n"
    assert (seen[0]["server.port"], seen[0]["server.headless"]) == (8777, True)
    settings = tomllib.loads((Path(str(server.__file__)).parent / ".streamlit" / "config.toml").read_text())
    assert settings["logger"]["hideWelcomeMessage"]


def test_samples_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["samples"]) == 0
    printed = capsys.readouterr().out
    assert "digits_lenet" in printed
    assert "cifar10" in printed


@pytest.mark.parametrize(
    ("recipe", "model", "data", "sentence"),
    [
        ("steps:\n- melt: {}\n", "digits_lenet", "digits", "Unknown technique: received 'melt'"),
        ("steps: 3\n", "digits_lenet", "digits", "A recipe is a mapping with a list of steps"),
        (None, "digits_lenet", "digits", "cannot be read: No such file or directory."),
        ("steps: []\n", "resnet", "digits", "There is no model 'resnet'; accepted are a file and the samples "),
        ("steps: []\n", "digits_lenet", "faces", "There is no data set 'faces'; accepted are "),
        ("steps: []\n", "digits_lenet", "cifar10:gone.npz", "There is no data set 'cifar10:gone.npz'"),
        ("steps: []\n", "{recipe}", "digits", "accepted"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    recipe: str | None, model: str, data: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    if recipe is not None:
        path.write_text(recipe)
    model = model.format(recipe=path)
    code = cli.main(
        ["run", "--workspace", str(tmp_path / "space"), str(path), "--model", model, "--data", data, "--out", "x"]
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert error.startswith("cnn-studio: ")
    assert sentence in error
    assert error.endswith(".")


def test_a_model_of_the_workspace_is_found_by_its_name(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    (tmp_path / "models" / "net-1").mkdir()
    (tmp_path / "models" / "net-1" / "card.json").write_text(json.dumps(CARD.to_json()))
    options = cli._parser().parse_args(["profile", "net-1"])
    assert cli.model_source(options, space) == {"kind": "workspace", "id": "net-1"}
    assert cli.data_source("digits", space) == {"kind": "digits"}
    (tmp_path / "c.npz").touch()
    local = {"kind": "cifar10", "path": str(tmp_path / "c.npz")}
    assert cli.data_source(f"cifar10:{tmp_path / 'c.npz'}", space) == local


def test_the_program_and_the_package_start_without_torch() -> None:
    code = (
        "import sys, core; from app import cli; from core import Recipe, Step; cli.main(['samples']);"
        "sys.exit(bool({'torch', 'onnxruntime', 'streamlit'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_every_public_name_of_core_is_there() -> None:
    assert all(getattr(core, name) is not None for name in core.__all__)
    assert set(core.__all__) == set(core._HOMES)
    assert set(core.__all__) <= set(dir(core))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        core.nothing  # noqa: B018
