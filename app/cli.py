"""`cnn-studio`: opens the studio; the other commands do without it.

    cnn-studio                                                     the studio in the browser
    cnn-studio optimize M --data D --max-drop 0.5 --out DIR        the best recipe within a loss, found in minutes
    cnn-studio run recipe.yaml --model M --data D --out DIR        one candidate, as if clicked together
    cnn-studio profile M                                           what every layer costs
    cnn-studio samples                                             models and data that come with the studio

M is a sample's name, a file (.onnx, .pth, .safetensors) or a model's name in the workspace; D is shapes, digits,
cifar10, a file (.npz, .zip) or a data set's name in the workspace. An error a user can cause is one sentence, exit 2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import tables
from app.terminal import Progress, print_candidate, print_table, print_trials, time_of
from core.errors import StudioError
from core.frames import layer_frame
from core.recipe import Recipe
from core.workspace import Workspace
from sample_models import SAMPLES

DATA = ("shapes", "digits", "cifar10")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 when the user must change something."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["studio", *given]
    options = _parser().parse_args(given)
    try:
        return int(options.do(options) or 0)
    except StudioError as error:
        print(f"cnn-studio: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncnn-studio: stopped; nothing already made is lost.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cnn-studio", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="studio | optimize | run | profile | samples")
    studio = commands.add_parser("studio", help="open the studio")
    studio.add_argument("--port", type=int, default=8501)
    studio.add_argument("--address", default="127.0.0.1")
    studio.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    studio.set_defaults(do=open_studio)
    run = commands.add_parser("run", help="run a recipe")
    run.add_argument("recipe", type=Path, help="a recipe as the studio saves it, .yaml")
    run.add_argument("--model", required=True)
    run.add_argument("--data", required=True)
    run.add_argument("--out", type=Path, required=True, help="folder for the candidate")
    run.set_defaults(do=run_recipe)
    optimize = commands.add_parser("optimize", help="find a recipe within an allowed loss")
    optimize.add_argument("model")
    optimize.add_argument("--data", help="images, with or without labels; a sample brings its own")
    optimize.add_argument(
        "--max-drop", type=float, help="points of accuracy (0.5), or of agreement without labels (2), that may be lost"
    )
    optimize.add_argument("--for", dest="objective", default="latency", help="latency, size or macs")
    optimize.add_argument("--minutes", type=float, default=5.0, help="time for all of it (5)")
    optimize.add_argument("--out", type=Path, help="folder for the candidate and its zip")
    optimize.set_defaults(do=run_optimize)
    profile = commands.add_parser("profile", help="what every layer costs")
    profile.add_argument("model")
    profile.add_argument("--csv", type=Path, help="a file for the same table")
    profile.set_defaults(do=show_profile)
    for command in (studio, optimize, run, profile):
        command.add_argument("--workspace", type=Path, help="folder of models, data and candidates (CNN_STUDIO_HOME)")
    for command in (optimize, run, profile):
        command.add_argument("--architecture", help="torchvision's name of the network that a weights file belongs to")
        command.add_argument("--input-shape", type=_numbers(int), help="channels,height,width where the file is silent")
        command.add_argument("--mean", type=_numbers(float), help="of the training pixels in [0, 1], per channel")
        command.add_argument("--std", type=_numbers(float))
    commands.add_parser("samples", help="what comes with the studio").set_defaults(do=show_samples)
    return parser


def open_studio(options: argparse.Namespace) -> None:
    """Serve the studio until it is interrupted."""
    if options.workspace:
        os.environ["CNN_STUDIO_HOME"] = str(options.workspace.resolve())
    from app import server

    sys.argv = [str(server.__file__)]  # Streamlit looks for its settings beside the program that it runs
    config = {"server.port": options.port, "server.address": options.address, "server.headless": options.no_browser}
    print(f"CNN Studio is at http://{options.address}:{options.port} until Ctrl+C ends it.", flush=True)
    server.app.run(config=config)


def run_recipe(options: argparse.Namespace) -> None:
    """The worker's own tasks, in this process: the same files as a click on Run. They stay in the workspace too."""
    recipe = _read_recipe(options.recipe)
    from core.engine import tasks

    space, report = Workspace(options.workspace), Progress()
    opened = {"model": model_source(options, space), "data": data_source(options.data, space)}
    ids = tasks.open_pair(space, opened, lambda f, m, **_: report(0.4 * f, m))
    found = tasks.run_recipe(space, {**ids, "recipe": recipe.to_yaml()}, lambda f, m, **_: report(0.4 + 0.6 * f, m))
    report.end()
    take_home(space, found["candidate"], options.out)
    print_candidate(space.candidate(found["candidate"]))
    print(f"\n{options.out / 'model.onnx'}")


def run_optimize(options: argparse.Namespace) -> None:
    """The worker's own search, in this process. Opening the model counts towards the minutes."""
    from core.strategy import Goal

    drop = None if options.max_drop is None else options.max_drop / 100
    Goal(drop or 0.0, options.objective, options.minutes)  # refused before anything is opened
    began, space, report = time.monotonic(), Workspace(options.workspace), Progress()
    opened = {"model": model_source(options, space), "data": data_source(_data_of(options), space)}
    from core.engine import tasks

    ids = tasks.open_pair(space, opened, lambda f, m, **_: report(0.1 * f, m))
    left = max(options.minutes - (time.monotonic() - began) / 60, 0.1 * options.minutes)
    order = {**ids, "drop": drop, "objective": options.objective, "minutes": left}
    found = tasks.optimize(space, order, lambda f, m, **_: report(0.1 + 0.9 * f, m))
    report.end()
    print_trials(found)
    if found["candidate"] is None:
        raise StudioError("No recipe could be made; the table says why.")
    print_candidate(space.candidate(found["candidate"]))
    if options.out:
        take_home(space, found["candidate"], options.out)
        print(f"\n{options.out / 'model.onnx'}")


def take_home(space: Workspace, candidate: str, out: Path) -> None:
    """Copy a candidate's files to `out`, and beside them the zip that the Export page offers."""
    from core import bundle  # NumPy, which opening the studio does not need

    shutil.copytree(space.folder("candidates", candidate), out, dirs_exist_ok=True)
    bundle.write_bundle(bundle.contents(space, candidate, test=True), out / "candidate.zip")


def _data_of(options: argparse.Namespace) -> str:
    """The data asked for, or a sample's own. Raises StudioError where there is neither."""
    if options.data is None and options.model not in SAMPLES:
        raise StudioError("Give images to measure on with --data: a .npz or .zip file, labelled or not.")
    return str(options.data or SAMPLES[options.model].data)


def show_profile(options: argparse.Namespace) -> None:
    from core.engine import tasks

    space, report = Workspace(options.workspace), Progress()
    opened = tasks.open_pair(space, {"model": model_source(options, space), "data": None}, report)
    report.end()
    found = space.profile(opened["model"])
    rows = [
        (x.name, x.kind, f"{x.params:,}", f"{x.macs:,}", "×".join(map(str, x.output_shape)), time_of(x.latency_ms))
        for x in found.layers
    ]
    total = ("total", "", f"{found.params:,}", f"{found.macs:,}", "", time_of(found.latency_ms))
    print_table(("layer", "kind", "parameters", "MACs", "output", "latency"), [*rows, total])
    if options.csv:
        layer_frame(found).to_csv(options.csv)
    print(f"\nfile {tables.size(found.file_bytes)}, peak activation memory {tables.size(found.peak_bytes)}")


def show_samples(options: argparse.Namespace) -> None:
    rows = [
        (name, card.title, card.data, "×".join(map(str, card.input_shape)), tables.percent(card.accuracy or 0.0))
        for name, card in SAMPLES.items()
    ]
    print_table(("model", "title", "data", "input", "accuracy"), rows)
    print(f"\ndata: {', '.join(DATA)} (cifar10 is downloaded)")


def model_source(options: argparse.Namespace, space: Workspace) -> dict[str, Any]:
    """What `models.open_model` takes. Raises StudioError when there is no such model."""
    name = options.model
    if name in SAMPLES:
        return {"kind": "sample", "name": name}
    if Path(name).is_file():
        told = {"architecture": options.architecture, "input_shape": options.input_shape}
        told |= {"mean": options.mean, "std": options.std}
        return {"kind": "file", "path": str(Path(name).resolve()), **{k: v for k, v in told.items() if v is not None}}
    if name in space.models():
        return {"kind": "workspace", "id": name}
    raise StudioError(f"There is no model {name!r}; accepted are a file and the samples {', '.join(SAMPLES)}.")


def data_source(name: str, space: Workspace) -> dict[str, Any]:
    """What `data_sets.open_data` takes. `cifar10:FILE.npz` is CIFAR-10 from a local file. Raises StudioError."""
    kind, _, path = name.partition(":")
    if kind in DATA and (not path or Path(path).is_file()):
        return {"kind": kind, **({"path": str(Path(path).resolve())} if path else {})}
    if Path(name).is_file():
        return {"kind": "file", "path": str(Path(name).resolve())}
    if name in space.data_sets():
        return {"kind": "workspace", "id": name}
    raise StudioError(f"There is no data set {name!r}; accepted are a .npz or .zip file and {', '.join(DATA)}.")


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudioError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StudioError(f"The recipe {path} is not text; accepted is YAML.") from error


def _numbers(kind: type) -> Any:
    """'0.5,0.5' → [0.5, 0.5], for argparse."""

    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    read.__name__ = "comma-separated numbers"
    return read


if __name__ == "__main__":
    sys.exit(main())
