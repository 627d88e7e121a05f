"""Profiles and candidates as pandas tables: rows, columns and totals are those of the records."""

from __future__ import annotations

from core import candidate_frame, layer_frame
from core.candidate import Latency, Scores, Share
from tests.profiles import resnet
from tests.test_front import candidate


def test_a_profile_is_a_row_for_each_layer_whose_sums_are_its_totals() -> None:
    profile = resnet(3)
    frame = layer_frame(profile)
    assert list(frame.index) == [layer.name for layer in profile.layers]
    assert (frame["parameters"].sum(), frame["macs"].sum()) == (profile.params, profile.macs)
    assert frame.loc["conv1", ["in_channels", "out_channels", "output_shape"]].tolist() == [3, 16, "16×32×32"]


def test_candidates_are_rows_with_or_without_labels() -> None:
    share, timing = Share(0.9, 0.88, 0.92, 1000), Latency(1, 2, 1.5, 3.0, 2.0, 1.8, 2.2, 40)
    labelled = candidate("a", Scores(share, Share(0.97, 0.96, 0.98, 1000), 4096, 1000, 50_000, 0, (timing,)))
    bare = candidate("b", Scores(None, Share(0.5, 0.4, 0.6, 1000), 2048, 500, 25_000, 0, ()))
    frame = candidate_frame([labelled, bare])
    row = frame.loc[labelled.id]
    assert (row["accuracy"], row["accuracy_low"], row["agreement"]) == (0.9, 0.88, 0.97)
    assert (row["file_bytes"], row["latency_ms_batch1_threads2"], row["times_faster_batch1_threads2"]) == (4096, 1.5, 2)
    assert frame.loc[bare.id, ["accuracy", "times_faster_batch1_threads2"]].isna().all()
    assert frame["macs"].tolist() == [50_000, 25_000]
