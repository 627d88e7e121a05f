"""Check that this model does here what its card says. Needs numpy and onnxruntime, nothing else.

    python verify.py             answers on the samples, accuracy and agreement on the test images (where included)
    python verify.py --latency   also the time of one image on one thread

Exit code 0 when everything is as the card says, 1 when something is not.
"""

import argparse
import hashlib
import json
import lzma
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Array = Any  # numpy.ndarray
Session = Any  # onnxruntime.InferenceSession
HERE = Path(__file__).resolve().parent
BATCH = 250
EIGHT_BITS = "int8, 8-bit weights"
OVERFLOW = "This file's weights have 8 bits. Sums can overflow on processors without VNNI; with 7 bits they cannot."
TIES = 0.002  # share of answers that may differ: other processors round differently where two classes are close


def to_input(pixels: Array, card: dict[str, Any]) -> Array:
    """Images (n, height, width, channels) uint8 -> the model's input (n, channels, height, width) float32."""
    mean, std = np.asarray(card["mean"], np.float32), np.asarray(card["std"], np.float32)
    return np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


def predict(session: Session, pixels: Array, card: dict[str, Any]) -> Array:
    """Logits (n, classes) float32."""
    source = session.get_inputs()[0]
    size = source.shape[0] if isinstance(source.shape[0], int) else BATCH
    parts = []
    for start in range(0, len(pixels), size):
        x = to_input(pixels[start : start + size], card)
        padded = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) if size != BATCH else x
        parts.append(session.run(None, {source.name: padded})[0][: len(x)])
    return np.concatenate(parts)


def check(rows: list[Any], name: str, here: object, card: object, good: bool) -> None:
    rows.append((name, here, card, "ok" if good else "DIFFERENT"))


def check_samples(rows: list[Any], session: Session, card: dict[str, Any]) -> None:
    with np.load(HERE / "samples.npz") as samples:
        pixels, expected = samples["images"], samples["logits"]
    found = predict(session, pixels, card)
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    check(rows, "Answers on the samples", same, len(pixels), same >= len(pixels) - 1)
    rows.append(("Largest difference of a logit", f"{np.abs(found - expected).max():.2e}", "0", "for information"))


def check_test(rows: list[Any], session: Session, card: dict[str, Any], scores: dict[str, Any]) -> None:
    folder = HERE / "test"
    pixels, original = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "original.npy")
    answers = predict(session, pixels, card).argmax(1)
    shares = {"agreement": float((answers == original).mean())}
    if (folder / "labels.npy").exists():
        shares["accuracy"] = float((answers == np.load(folder / "labels.npy")).mean())
    for name, here in sorted(shares.items()):
        said = scores[name]["value"]
        check(
            rows,
            f"{name.capitalize()} on {len(pixels):,} images",
            f"{here:.4%}",
            f"{said:.4%}",
            abs(here - said) <= TIES,
        )


def time_one(card: dict[str, Any]) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((1, *card["input_shape"]), np.float32)}
    times = []
    for _ in range(60):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times[10:])) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that this model does here what its card says.")
    parser.add_argument("--latency", action="store_true", help="also time one image on one thread")
    wanted = parser.parse_args()
    about = json.loads((HERE / "card.json").read_text(encoding="utf-8"))
    card, scores = about["model"], about["scores"]
    rows: list[Any] = []
    content = (HERE / "model.onnx").read_bytes()
    check(rows, "File size in bytes", len(content), scores["size_bytes"], len(content) == scores["size_bytes"])
    hashed = hashlib.sha256(content).hexdigest()
    if scores.get("packed_bytes"):
        packed = (HERE / "model.onnx.xz").read_bytes()
        same = len(packed) == scores["packed_bytes"] and lzma.decompress(packed) == content
        check(rows, "Compressed size in bytes", len(packed), scores["packed_bytes"], same)
    check(rows, "SHA-256", hashed[:12], about["sha256"][:12], hashed == about["sha256"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    check_samples(rows, session, card)
    if (HERE / "test").exists():
        check_test(rows, session, card, scores)
    if wanted.latency:
        said = [f"{r['latency_ms']:.2f} ms" for r in scores["latency"] if (r["batch"], r["threads"]) == (1, 1)]
        rows.append(("One image on one thread", f"{time_one(card):.2f} ms", (said or ["-"])[0], "for information"))
    print(f"{'':36}{'here':>16}{'on the card':>16}")
    for name, here, there, verdict in rows:
        print(f"{name:36}{here!s:>16}{there!s:>16}  {verdict}")
    differs = any(row[3] == "DIFFERENT" for row in rows)
    if differs and session.get_modelmeta().custom_metadata_map.get("quantization") == EIGHT_BITS:
        print(OVERFLOW)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
