"""`cnn-studio`: opens the studio; `run`, `profile` and `samples` do without it.

    cnn-studio                                                     the studio in the browser
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
from core.candidate import Candidate
from core.errors import StudioError
from core.recipe import Recipe
from core.workspace import Workspace
from sample_models import SAMPLES

DATA = ("shapes", "digits", "cifar10")
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


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
    commands = parser.add_subparsers(required=True, metavar="studio | run | profile | samples")
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
    profile = commands.add_parser("profile", help="what every layer costs")
    profile.add_argument("model")
    profile.set_defaults(do=show_profile)
    for command in (studio, run, profile):
        command.add_argument("--workspace", type=Path, help="folder of models, data and candidates (CNN_STUDIO_HOME)")
    for command in (run, profile):
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
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(space.folder("candidates", found["candidate"]), options.out, dirs_exist_ok=True)
    _print_candidate(space.candidate(found["candidate"]))
    print(f"\n{options.out / 'model.onnx'}")


def show_profile(options: argparse.Namespace) -> None:
    from core.engine import tasks

    space, report = Workspace(options.workspace), Progress()
    opened = tasks.open_pair(space, {"model": model_source(options, space), "data": None}, report)
    report.end()
    found = space.profile(opened["model"])
    rows = [
        (x.name, x.kind, f"{x.params:,}", f"{x.macs:,}", "×".join(map(str, x.output_shape)), _time(x.latency_ms))
        for x in found.layers
    ]
    total = ("total", "", f"{found.params:,}", f"{found.macs:,}", "", _time(found.latency_ms))
    _print_table(("layer", "kind", "parameters", "MACs", "output", "latency"), [*rows, total])
    print(f"\nfile {tables.size(found.file_bytes)}, peak activation memory {tables.size(found.peak_bytes)}")


def show_samples(options: argparse.Namespace) -> None:
    rows = [
        (name, card.title, card.data, "×".join(map(str, card.input_shape)), tables.percent(card.accuracy or 0.0))
        for name, card in SAMPLES.items()
    ]
    _print_table(("model", "title", "data", "input", "accuracy"), rows)
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


class Progress:
    """One line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.printed = 0.0

    def __call__(self, fraction: float, message: str, **numbers: object) -> None:
        if self.terminal:
            print(f"\r\033[K{fraction:4.0%}  {message}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.printed >= EVERY:
            self.printed = time.monotonic()
            print(f"{fraction:4.0%}  {message}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudioError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StudioError(f"The recipe {path} is not text; accepted is YAML.") from error


def _print_candidate(made: Candidate) -> None:
    scores = made.scores
    rows = [("agreement", f"{tables.percent(scores.agreement.value)}  {tables.interval(scores.agreement)}")]
    if scores.accuracy:
        rows.insert(0, ("accuracy", f"{tables.percent(scores.accuracy.value)}  {tables.interval(scores.accuracy)}"))
    rows += [
        ("size", tables.size(scores.size_bytes)),
        ("parameters", f"{scores.params:,}"),
        ("MACs", f"{scores.macs:,}"),
    ]
    for x in scores.latency:
        speed = f"{tables.times(x.speedup)} ({tables.times(x.speedup_low)} to {tables.times(x.speedup_high)})"
        rows.append((f"batch {x.batch}, threads {x.threads}", f"{_time(x.latency_ms)}  {speed}"))
    _print_table((made.title, "verified on the exported file"), rows)
    for skip in made.skipped:
        print(f"kept: {skip.layer}: {skip.reason}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _time(milliseconds: float | None) -> str:
    return "" if milliseconds is None else tables.milliseconds(milliseconds)


def _numbers(kind: type) -> Any:
    """'0.5,0.5' → [0.5, 0.5], for argparse."""

    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    read.__name__ = "comma-separated numbers"
    return read


if __name__ == "__main__":
    sys.exit(main())
