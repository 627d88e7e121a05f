"""Profiles and candidates as pandas tables, for notebooks and spreadsheets; units are in the names of the columns.

pandas takes longer to load than the studio to open, so only these functions load it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from core.candidate import Candidate
from core.layers import Profile

if TYPE_CHECKING:
    import pandas as pd


def layer_frame(profile: Profile) -> pd.DataFrame:
    """One row for each layer, by its name, in the order of execution."""
    import pandas as pd

    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "output_shape": "×".join(map(str, layer.output_shape)),
            "parameters": layer.params,
            "macs": layer.macs,
            "activation_bytes": layer.activation_bytes,
            "latency_ms": layer.latency_ms,
        }
        for layer in profile.layers
    ]
    return pd.DataFrame(rows).set_index("layer")


def candidate_frame(candidates: Iterable[Candidate]) -> pd.DataFrame:
    """One row for each candidate, by its id: the scores of its file, accuracies as shares, speed-ups by setting."""
    import pandas as pd

    return pd.DataFrame([_row(made) for made in candidates]).set_index("id")


def _row(made: Candidate) -> dict[str, Any]:
    scores = made.scores
    found: dict[str, Any] = {"id": made.id, "title": made.title, "agreement": scores.agreement.value}
    if scores.accuracy:
        found |= {
            "accuracy": scores.accuracy.value,
            "accuracy_low": scores.accuracy.low,
            "accuracy_high": scores.accuracy.high,
        }
    found |= {"file_bytes": scores.size_bytes, "parameters": scores.params, "macs": scores.macs}
    for row in scores.latency:
        setting = f"batch{row.batch}_threads{row.threads}"
        found |= {f"latency_ms_{setting}": row.latency_ms, f"times_faster_{setting}": row.speedup}
    return found
