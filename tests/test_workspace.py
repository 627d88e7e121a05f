"""The workspace: unfinished folders do not exist, names from a URL stay inside, records survive a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.candidate import Candidate, Latency, Scores, Share, Skip
from core.cards import DataCard, ModelCard
from core.errors import StudioError
from core.layers import Feed, Group, Layer, Profile, kept_channels
from core.workspace import Workspace, write_json

CARD = ModelCard("net", "Net", (3, 32, 32), ("cat", "dog"), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
SHARE = Share(0.9, 0.88, 0.92, 1000)
SCORES = Scores(SHARE, SHARE, 1234, 10, 20, 30, (Latency(1, 1, 0.5, 1.0, 2.0, 1.9, 2.1, 30),), (SHARE, SHARE))
CANDIDATE = Candidate(
    "abc", "net-1", "data-1", "steps: []", "Original", SCORES, (Skip("factorize", "conv1", "larger"),),
    {"distill": [{"epoch": 1, "loss": 0.5}]}, {"conv1": 0.1}, 1e-6, 3.0, {"seed": "0"},
)  # fmt: skip


def test_records_survive_json() -> None:
    import json

    def trip(values: object) -> object:
        return json.loads(json.dumps(values))

    profile = Profile(
        (Layer("conv1", "conv", 9, 90, 1, 1, (3, 3), 1, False, (1, 8, 8), 256, "conv1", (Feed("input", 2),)),),
        (Group("conv1", 1, ("conv1",), "its channels are the classes"),), 9, 90, 256, 512, 1000,
    )  # fmt: skip
    assert Profile.from_json(trip(profile.to_json())) == profile  # type: ignore[arg-type]
    assert Candidate.from_json(trip(CANDIDATE.to_json())) == CANDIDATE  # type: ignore[arg-type]
    assert ModelCard.from_json({**trip(CARD.to_json()), "added_later": 1}) == CARD  # type: ignore[dict-item]
    data = DataCard("d", "D", (3, 32, 32), ("a",), 1, 2, 3, 4, True, "ff")
    assert DataCard.from_json(trip(data.to_json())) == data  # type: ignore[arg-type]


def test_a_folder_without_its_record_does_not_exist(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    half = workspace.folder("candidates", "half")
    half.mkdir()
    (half / "model.onnx").write_bytes(b"partial")
    done = workspace.folder("candidates", "abc")
    done.mkdir()
    write_json(done / "candidate.json", CANDIDATE.to_json())
    assert workspace.candidates() == {"abc": CANDIDATE}
    assert workspace.candidates(model="other") == {}
    assert not list(tmp_path.rglob("*.part"))


def test_names_from_outside_stay_inside(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.folder("models", "../../etc/passwd") == tmp_path / "models" / "passwd"
    with pytest.raises(StudioError, match="nothing is not in the workspace any more"):
        workspace.model_card("nothing")


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.folder("models", "m")
    folder.mkdir()
    (folder / "card.json").write_text("{")
    with pytest.raises(StudioError, match=r"card\.json of m cannot be read"):
        workspace.model_card("m")


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [(64, 0.0, 8, 64), (64, 0.5, 8, 32), (64, 0.3, 8, 48), (64, 0.99, 8, 8), (16, 0.9, 8, 8), (10, 0.5, 16, 10),
     (10, 0.5, 1, 5), (20, 0.5, 8, 8), (20, 0.05, 8, 16), (12, 0.9, 1, 1)],
)  # fmt: skip
def test_kept_channels_by_hand(channels: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_channels(channels, ratio, multiple) == kept
