"""The bundle of a real ONNX file: sizes known beforehand, the same bytes each time, and a script that finds a fault."""

from __future__ import annotations

import lzma
import re
import subprocess
import sys
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from core import bundle
from core.candidate import EIGHT_BITS, Share
from core.workspace import Workspace, write_json
from tests.profiles import resnet
from tests.workspaces import LABELS, MEAN, STD, write_workspace

RECIPE = "recipe: 1\nseed: 0\nsteps:\n- quantize: {}\n"


def write_onnx(path: Path) -> None:
    """Logits = flattened input times fixed weights: (n, 3, 8, 8) → (n, 3)."""
    weights = np.random.default_rng(0).standard_normal((192, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Workspace, str]:
    """A candidate whose file, predictions and scores belong together."""
    space = write_workspace(tmp_path, resnet(1), (RECIPE,))
    ((name, candidate),) = space.candidates().items()
    folder, images = (
        space.folder("candidates", name),
        np.random.default_rng(1).integers(0, 256, (30, 8, 8, 3), np.uint8),
    )
    np.savez(space.folder("data", "pets-1") / "data.npz", test_x=images, test_y=LABELS)
    write_onnx(folder / "model.onnx")
    x = ((images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32).transpose(0, 3, 1, 2)
    logits = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"x": x})[0]
    np.savez(folder / "predictions.npz", logits=logits)
    np.savez(space.folder("models", "net-1") / "baseline-pets-1.npz", logits=logits[:, [1, 0, 2]])
    right, same = logits.argmax(1) == LABELS, logits.argmax(1) == logits[:, [1, 0, 2]].argmax(1)
    scores = replace(
        candidate.scores,
        accuracy=Share(float(right.mean()), 0.0, 1.0, 30),
        agreement=Share(float(same.mean()), 0.0, 1.0, 30),
        size_bytes=(folder / "model.onnx").stat().st_size,
    )
    write_json(folder / "candidate.json", asdict(replace(candidate, scores=scores)))
    return space, name


def unpack(space: Workspace, name: str, folder: Path, *, test: bool = True) -> Path:
    bundle.write_bundle(bundle.contents(space, name, test=test), folder / "candidate.zip")
    with ZipFile(folder / "candidate.zip") as archive:
        archive.extractall(folder / "candidate")
    return folder / "candidate"


def verify(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """-I: neither the project nor anything else of this environment's path settings is there to help."""
    command = [sys.executable, "-I", str(folder / "verify.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("test", [False, True])
def test_sizes_are_known_before_anything_is_written(made: tuple[Workspace, str], test: bool) -> None:
    members = bundle.contents(*made, test=test)
    out = BytesIO()
    bundle.write_bundle(members, out)
    assert len(out.getvalue()) == bundle.zip_bytes(members)
    with ZipFile(out) as archive:
        assert {i.filename: i.file_size for i in archive.infolist()} == {m.name: m.size_bytes for m in members}
        assert archive.testzip() is None
    assert ("test/images.npy" in {m.name for m in members}) == test


def test_the_same_candidate_gives_the_same_bytes(made: tuple[Workspace, str]) -> None:
    first, second = BytesIO(), BytesIO()
    bundle.write_bundle(bundle.contents(*made), first)
    bundle.write_bundle(bundle.contents(*made), second)
    assert first.getvalue() == second.getvalue()


def test_verify_reproduces_the_numbers(made: tuple[Workspace, str], tmp_path: Path) -> None:
    folder = unpack(*made, tmp_path)
    said = verify(folder, "--latency")
    assert said.returncode == 0, said.stdout + said.stderr
    scores = made[0].candidate(made[1]).scores
    assert scores.accuracy is not None
    assert re.search(
        rf"Accuracy on 30 images\s+{scores.accuracy.value:.4%}\s+{scores.accuracy.value:.4%}  ok", said.stdout
    )
    assert re.search(rf"Agreement on 30 images\s+{scores.agreement.value:.4%}", said.stdout)
    assert re.search(r"Answers on the samples\s+16\s+16  ok", said.stdout)
    assert "One image on one thread" in said.stdout


def test_a_compressed_file_comes_along_and_is_checked(made: tuple[Workspace, str], tmp_path: Path) -> None:
    space, name = made
    source, candidate = space.folder("candidates", name), space.candidate(name)
    packed = lzma.compress((source / "model.onnx").read_bytes())
    (source / "model.onnx.xz").write_bytes(packed)
    write_json(
        source / "candidate.json",
        asdict(replace(candidate, scores=replace(candidate.scores, packed_bytes=len(packed)))),
    )
    try:
        folder = unpack(space, name, tmp_path)
        said = verify(folder)
        assert said.returncode == 0, said.stdout + said.stderr
        assert re.search(rf"Compressed size in bytes\s+{len(packed)}\s+{len(packed)}  ok", said.stdout)
        other = (folder / "model.onnx").read_bytes()[::-1]
        (folder / "model.onnx.xz").write_bytes(lzma.compress(other))
        assert re.search(r"^Compressed size.*DIFFERENT$", verify(folder).stdout, re.M)
    finally:
        (source / "model.onnx.xz").unlink()
        write_json(source / "candidate.json", asdict(candidate))


def test_verify_finds_a_changed_weight(made: tuple[Workspace, str], tmp_path: Path) -> None:
    folder = unpack(*made, tmp_path)
    proto = onnx.load(folder / "model.onnx")
    weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[:, 0] += 1
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    onnx.save(proto, folder / "model.onnx")
    said = verify(folder)
    assert said.returncode == 1
    for line in ("SHA-256", "Answers on the samples", "Accuracy on 30 images"):
        assert re.search(rf"^{line}.*DIFFERENT$", said.stdout, re.M), said.stdout


def test_weights_that_overflow_elsewhere_are_told_in_the_card_and_by_verify(
    made: tuple[Workspace, str], tmp_path: Path
) -> None:
    space, name = made
    candidate = space.candidate(name)
    assert "VNNI" not in (unpack(space, name, tmp_path) / "MODEL_CARD.md").read_text(encoding="utf-8")
    said = {"quantization": EIGHT_BITS}
    source = space.folder("candidates", name)
    write_json(source / "candidate.json", asdict(replace(candidate, provenance=candidate.provenance | said)))
    proto = onnx.load(source / "model.onnx")
    helper.set_model_props(proto, said)
    onnx.save(proto, source / "model.onnx")
    folder = unpack(space, name, tmp_path)
    assert "x86 processors without VNNI" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    weights = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights[:, ::-1].copy(), "w"))
    onnx.save(proto, folder / "model.onnx")
    assert "Sums can overflow on processors without VNNI" in verify(folder).stdout


def test_verify_works_without_the_test_images(made: tuple[Workspace, str], tmp_path: Path) -> None:
    said = verify(unpack(*made, tmp_path, test=False))
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Accuracy" not in said.stdout


def test_the_card_says_what_was_measured_and_its_code_runs(made: tuple[Workspace, str], tmp_path: Path) -> None:
    folder = unpack(*made, tmp_path)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    scores = made[0].candidate(made[1]).scores
    assert scores.accuracy is not None
    assert f"| Accuracy (top-1) | {scores.accuracy.value:.2%}" in card
    assert "| Latency, batch 32, 2 threads | 1 ms, 1.50× the speed (1.40 to 1.60) | 1.5 ms |" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    said = subprocess.run(
        [sys.executable, "-I", "-c", code[1]], cwd=folder, capture_output=True, text=True, timeout=120
    )
    with np.load(folder / "samples.npz") as samples:
        expected = samples["logits"].argmax(1)
    assert [int(n) for n in re.findall(r"\d+", said.stdout)] == expected.tolist(), said.stderr
