"""What the Export page draws: the candidate, the files of its bundle, the download and the commands that go with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import streamlit as st

from app import columns, tables
from app.components.data_table import data_table
from app.figures import show_figure
from app.netron import LEASES, file_address
from app.titles import titles
from core import bundle
from core.candidate import Candidate
from core.errors import StudioError
from core.workspace import Workspace

IN_MEMORY = 50_000_000  # bytes; a larger zip goes to disk and is streamed, a smaller one never touches it
VERIFY = """python -m zipfile -e {file} candidate
python -m pip install numpy onnxruntime
python candidate/verify.py"""


def choose(found: Mapping[str, Candidate], picked: str | None) -> str:
    """Which candidate to take home."""
    ids = list(found)
    start = ids.index(picked) if picked and picked in found else 0
    return str(st.selectbox("Candidate", ids, start, format_func=titles(found).__getitem__, key=f"export-{picked}"))


def summary(made: Candidate) -> None:
    """The figures that go into its card."""
    scores, badge = made.scores, tables.badge_of(made.scores)
    speed = tables.latency_of(scores)
    with st.grid(4, min_column_width=170):
        if scores.accuracy:
            show_figure("Accuracy", tables.percent(scores.accuracy.value), badge, tables.interval(scores.accuracy))
        same = tables.interval(scores.agreement)
        show_figure("Agreement", tables.percent(scores.agreement.value), badge, f"with the original; {same}")
        packed = f"; {tables.size(scores.packed_bytes)} compressed" if scores.packed_bytes else ""
        show_figure("File size", tables.size(scores.size_bytes), "exact", f"model.onnx{packed}")
        if speed:
            low, high = tables.times(speed.speedup_low), tables.times(speed.speedup_high)
            detail = f"{tables.milliseconds(speed.latency_ms)}; {low} to {high}"
            show_figure("Speed", tables.times(speed.speedup), "measured", detail)


def ask_test(space: Workspace, made: Candidate) -> bool:
    """Whether the test images come along: then the accuracy can be checked elsewhere too."""
    with ZipFile(space.folder("data", made.data) / "data.npz") as archive:
        size = archive.getinfo("test_x.npy").file_size
    label = f"Include all test images ({tables.size(size)}), so that accuracy can be verified anywhere"
    return st.toggle(label, size <= IN_MEMORY, key=f"test-{made.data}")


def contents(members: Sequence[bundle.Member]) -> None:
    """Every file and its size, before anything is written."""
    rows = [{"File": m.name, "Size": m.size_bytes, "Bytes": m.size_bytes, "What": m.what} for m in members]
    data_table(columns.FILES, rows, key="files", alt="Files of the bundle with their sizes")


def download(space: Workspace, made: Candidate, members: Sequence[bundle.Member]) -> None:
    """One click: a small zip is made in memory, a large one on disk."""
    total, name = bundle.zip_bytes(members), f"{made.id}.zip"
    label = f"Download zip, {tables.size(total)}"
    if total <= IN_MEMORY:
        st.download_button(
            label, lambda: packed(members), name, "application/zip", icon=":material/download:", type="primary",
            on_click="ignore", key="download",
        )  # fmt: skip
        return
    if not LEASES.served:
        st.info("A download this large needs the studio's server: start it with `cnn-studio`.")
        return
    path = space.folder("candidates", made.id) / f"bundle-{total}.zip"
    if not path.exists():
        if not st.button(f"Prepare the zip, {tables.size(total)}", icon=":material/folder_zip:", key="prepare"):
            return
        with st.spinner("Writing the zip"):
            prepare(members, path)
    st.link_button(label, file_address(path, name), icon=":material/download:", type="primary")


def prepare(members: Sequence[bundle.Member], path: Path) -> None:
    """Write the zip beside its candidate, in place of an earlier one; whoever reads `path` sees it whole or not yet."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        bundle.write_bundle(members, part)
        earlier = [file for file in path.parent.glob("bundle-*.zip") if file != path]
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StudioError(f"The zip cannot be written beside its candidate: {error.strerror}.") from error
    for file in earlier:
        file.unlink(missing_ok=True)


def packed(members: Sequence[bundle.Member]) -> bytes:
    """The zip's bytes."""
    out = BytesIO()
    bundle.write_bundle(members, out)
    return out.getvalue()


def how_to_verify(made: Candidate) -> None:
    st.caption("Three commands on any computer with Python. The last one compares what it finds with the card.")
    st.code(VERIFY.format(file=f"{made.id}.zip"), language="bash")
    if made.caution:
        st.info(made.caution, icon=":material/memory:")


def how_to_repeat(space: Workspace, made: Candidate) -> None:
    """The command that makes the same candidate from the same recipe, without the studio."""
    model, data = (_source(space, kind, name) for kind, name in (("models", made.model), ("data", made.data)))
    st.caption("The same recipe, model, data and seed give the same candidate.")
    st.code(f"cnn-studio run recipe.yaml --model {model} --data {data} --out candidate", language="bash")
    with st.expander("recipe.yaml", icon=":material/description:"):
        st.code(made.recipe, language="yaml")


def _source(space: Workspace, kind: str, name: str) -> str:
    """What the command line calls the model or the data: a sample's name, or the file it came from."""
    path = space.folder(kind, name) / "source.json"
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return name
    except ValueError as error:
        raise StudioError(f"{path.name} of {name} cannot be read: {error}.") from error
    text = str(source.get("name") or Path(source.get("path", source["kind"])).name)
    return f'"{text}"' if " " in text else text
