"""A candidate: one recipe's exported file and everything measured on it. Written once, never changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

EIGHT_BITS = "int8, 8-bit weights"  # what such a file says of itself
OVERFLOW = (
    "Its weights have 8 bits, as is best where it was made. x86 processors without VNNI (most of Intel's before 2020, "
    "AMD's before 2022) add products of 8 bits in 16, which can overflow: answers may differ there; verify.py tells. "
    "For such processors set Weights of the Quantize step to 7."
)


@dataclass(frozen=True)
class Share:
    """A share of images, with its Wilson 95 % interval. Fractions in [0, 1]."""

    value: float
    low: float
    high: float
    count: int  # images it was measured on


@dataclass(frozen=True)
class Latency:
    """One setting of the runtime, original and candidate interleaved in one run."""

    batch: int
    threads: int
    latency_ms: float  # candidate, median, for the whole batch
    original_ms: float
    speedup: float  # median of the ratios original / candidate, pair by pair
    speedup_low: float  # 10th percentile of those ratios
    speedup_high: float  # 90th percentile
    runs: int


@dataclass(frozen=True)
class Scores:
    """Measured on the exported file in ONNX Runtime. `verified` says that the whole test part was used."""

    accuracy: Share | None  # None without labels
    agreement: Share  # with the original file's answers, same images
    size_bytes: int  # on disk
    params: int
    macs: int
    peak_bytes: int
    latency: tuple[Latency, ...]
    per_class: tuple[Share, ...] = ()  # accuracy per class, in the order of the card's classes
    verified: bool = True
    packed_bytes: int | None = None  # of the file compressed; None where that hardly helps

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Skip:
    """A layer a step left alone, and why."""

    technique: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """What `run` returns and what `candidate.json` holds, beside `model.onnx` and `recipe.yaml`."""

    id: str
    model: str  # model id
    data: str  # data id
    recipe: str  # YAML
    title: str
    scores: Scores
    skipped: tuple[Skip, ...]
    curves: dict[str, list[dict[str, float]]]  # technique → rows of its learning curve
    layer_error: dict[str, float]  # layer → relative error of its output against the original, 0 is none
    parity: float  # largest |torch - ONNX| over the logits of real images, before file steps
    seconds: float
    provenance: dict[str, str]  # data hash, seed, versions, machine, threads

    @property
    def caution(self) -> str:
        """Where the file may answer otherwise than was measured; "" where every processor computes the same."""
        return OVERFLOW if self.provenance.get("quantization") == EIGHT_BITS else ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Candidate:
        return cls(
            **{
                **values,
                "scores": scores_from_json(values["scores"]),
                "skipped": tuple(Skip(**row) for row in values["skipped"]),
            }
        )


def scores_from_json(row: dict[str, Any]) -> Scores:
    return Scores(
        **{
            **row,
            "accuracy": Share(**row["accuracy"]) if row["accuracy"] else None,
            "agreement": Share(**row["agreement"]),
            "latency": tuple(Latency(**item) for item in row["latency"]),
            "per_class": tuple(Share(**item) for item in row["per_class"]),
        }
    )
