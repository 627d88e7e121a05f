"""What a user takes home: the file, how it was made, what it can do, and a script that checks it anywhere.

    model.onnx  [model.onnx.xz]  recipe.yaml  MODEL_CARD.md  card.json  samples.npz  verify.py
    [test/images.npy labels.npy original.npy]

Everything is on disk already, so the list and its sizes are exact before anything is written, no tensor is needed, and
large parts are streamed. Entries are stored, not deflated: weights and pictures hardly shrink, and the size is known.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from core.candidate import Candidate
from core.compare import read_logits
from core.model_card import write_card
from core.pictures import read_labels, read_rows
from core.workspace import Workspace

SAMPLES = 16
VERIFY = Path(__file__).parent / "engine" / "formats" / "verify.py"
DATE = (2020, 1, 1, 0, 0, 0)  # of every entry: the same candidate gives the same zip


@dataclass(frozen=True)
class Member:
    """One file of the bundle. Its content is bytes, a file, or an entry of an archive."""

    name: str
    what: str
    content: bytes | Path | tuple[Path, str]

    @property
    def size_bytes(self) -> int:
        if isinstance(self.content, bytes):
            return len(self.content)
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        with ZipFile(self.content[0]) as archive:
            return archive.getinfo(self.content[1]).file_size

    def copy_to(self, out: IO[bytes]) -> None:
        """Write the content, a piece at a time."""
        if isinstance(self.content, bytes):
            out.write(self.content)
        elif isinstance(self.content, Path):
            with self.content.open("rb") as file:
                shutil.copyfileobj(file, out)
        else:
            with ZipFile(self.content[0]) as archive, archive.open(self.content[1]) as file:
                shutil.copyfileobj(file, out)


def contents(workspace: Workspace, candidate: str, *, test: bool = False) -> tuple[Member, ...]:
    """The files of a candidate's bundle, with `test` the test images too. Raises StudioError when one is gone."""
    made, folder = workspace.candidate(candidate), workspace.folder("candidates", candidate)
    card, data_card = workspace.model_card(made.model), workspace.data_card(made.data)
    original = workspace.baseline(made.model, made.data)
    data = workspace.folder("data", made.data) / "data.npz"
    model, packed = folder / "model.onnx", folder / "model.onnx.xz"
    about = {
        "model": card.to_json(),
        "data": data_card.to_json(),
        "recipe": made.title,
        "scores": asdict(made.scores),
        "sha256": _sha256(model),
        "provenance": made.provenance,
    }
    text, samples = write_card(made, card, data_card, original), _samples(data, folder, data_card.test)
    members = (
        Member("model.onnx", "The optimized model, for any ONNX runtime.", model),
        *(
            [Member(packed.name, "The same, compressed: `xz -d` or verify.py unpacks it.", packed)]
            if packed.exists()
            else []
        ),
        Member("recipe.yaml", "What was done, step by step.", made.recipe.encode()),
        Member("MODEL_CARD.md", "What it is, how to use it, what was measured.", text.encode()),
        Member("card.json", "The same for programs: input, classes, scores.", json.dumps(about, indent=1).encode()),
        Member("samples.npz", f"{SAMPLES} test images with the answers to expect.", samples),
        Member("verify.py", "Checks all of it; needs numpy and onnxruntime.", VERIFY),
    )
    return (*members, *(_test_part(workspace, made, data) if test else ()))


def _sha256(path: Path) -> str:
    """A piece at a time: a model may be larger than the memory that the pages have."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _samples(data: Path, folder: Path, count: int) -> bytes:
    index = np.unique(np.linspace(0, count - 1, SAMPLES).round().astype(int))
    out = BytesIO()
    arrays: dict[str, Any] = {
        "images": read_rows(data, "test_x", index.tolist()),
        "logits": read_logits(folder / "predictions.npz")[index],
    }
    labels = read_labels(data, "test_y")
    np.savez(out, **arrays, **({} if labels is None else {"labels": labels[index]}))
    return out.getvalue()


def _test_part(workspace: Workspace, made: Candidate, data: Path) -> tuple[Member, ...]:
    answers = BytesIO()
    saved = workspace.folder("models", made.model) / f"baseline-{made.data}.npz"
    np.save(answers, read_logits(saved).argmax(1).astype(np.int32))
    with ZipFile(data) as archive:
        labelled = "test_y.npy" in archive.namelist()
    return (
        Member("test/images.npy", "All test images.", (data, "test_x.npy")),
        *([Member("test/labels.npy", "Their classes.", (data, "test_y.npy"))] if labelled else []),
        Member("test/original.npy", "The original model's answers.", answers.getvalue()),
    )


def write_bundle(members: Sequence[Member], out: IO[bytes] | Path) -> None:
    """Write the zip. The same members give the same bytes."""
    with ZipFile(out, "w", ZIP_STORED) as archive:
        for member in members:
            info = ZipInfo(member.name, DATE)
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=member.size_bytes > 2**31) as entry:
                member.copy_to(entry)


def zip_bytes(members: Sequence[Member]) -> int:
    """Size of the zip, exactly, without writing it (below 2 GB): per entry two headers with its name, and one end."""
    return sum(member.size_bytes + 30 + 46 + 2 * len(member.name.encode()) for member in members) + 22
