"""`shapes`: pictures of ten shapes, drawn instead of downloaded, each with its mask and its box.

Image i is a pure function of (seed, i): the same on every machine, in any order, alone or in a batch. Only uniform
draws and correctly rounded operations (+ - * / sqrt, min, max) touch the pixels, so no library's sine can change them.
A shape is a distance d (n, n), negative inside, in units of its radius; an edge is soft over one pixel. See Quilez,
"2D distance functions". Pose, stretch, shear, colour, texture, contrast, clutter before and behind, light and noise
all vary, so that a small CNN has something to learn and a linear model of the pixels has nothing to hold on to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Draw = Callable[..., Any]  # uniform in [0, 1): draw() is a float, draw(n) and draw((h, w)) are arrays
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are just outside

SIZE = 32
Y, X = (axis.astype(np.float64) + 0.5 for axis in np.mgrid[0:SIZE, 0:SIZE])  # pixel centres


def _disc(u: Grid, v: Grid, radius: float = 1.0) -> Grid:
    distance: Grid = np.sqrt(u * u + v * v) - radius
    return distance


def _rectangle(u: Grid, v: Grid, width: float, height: float) -> Grid:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _sides(u: Grid, v: Grid, count: int) -> list[Grid]:
    """Distance along the outward direction of each side of a regular polygon; the first corner points up."""
    turns = [math.tau * (k + 0.5) / count - math.tau / 4 for k in range(count)]
    return [u * math.cos(t) + v * math.sin(t) for t in turns]


def _polygon(u: Grid, v: Grid, count: int) -> Grid:
    distance: Grid = np.maximum.reduce(_sides(u, v, count)) - math.cos(math.pi / count)
    return distance


def _circle(u: Grid, v: Grid) -> Grid:
    return _disc(u, v, 0.9)


def _square(u: Grid, v: Grid) -> Grid:
    return _rectangle(u, v, 0.75, 0.75)


def _triangle(u: Grid, v: Grid) -> Grid:
    return _polygon(u, v, 3)


def _star(u: Grid, v: Grid) -> Grid:
    """A pentagram: inside at least four of the five half-planes that its lines bound."""
    distance: Grid = np.sort(np.stack(_sides(u, v, 5)), axis=0)[-2] - math.cos(math.tau / 5)
    return distance


def _cross(u: Grid, v: Grid) -> Grid:
    return np.minimum(_rectangle(u, v, 0.95, 0.3), _rectangle(u, v, 0.3, 0.95))


def _ring(u: Grid, v: Grid) -> Grid:
    return np.abs(_disc(u, v, 0.68)) - 0.24


def _heart(u: Grid, v: Grid) -> Grid:
    """A square on its corner, with a half disc on each of its upper sides."""
    lobes = np.minimum(_disc(u - 0.42, v + 0.32, 0.58), _disc(u + 0.42, v + 0.32, 0.58))
    return np.minimum(lobes, (np.abs(u) + np.abs(v - 0.1) - 0.84) * math.sqrt(0.5))


def _crescent(u: Grid, v: Grid) -> Grid:
    return np.maximum(_disc(u, v, 0.95), 0.75 - np.sqrt((u - 0.45) ** 2 + v * v))


def _arrow(u: Grid, v: Grid) -> Grid:
    return np.minimum(_rectangle(u, v - 0.4, 0.24, 0.55), _polygon(u, (v + 0.4) * 1.1, 3) * 0.8 + 0.08)


def _hexagon(u: Grid, v: Grid) -> Grid:
    return _polygon(u, v, 6)


DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "hexagon": _hexagon,
}
CLASSES = tuple(DISTANCES)


def _between(draw: Draw, low: float, high: float) -> float:
    return low + (high - low) * float(draw())


def _cover(distance: Grid, scale: float) -> Grid:
    """Share of each pixel that is inside, from a distance in units of `scale` pixels."""
    return np.clip(0.5 - distance * scale, 0.0, 1.0)


def _paint(canvas: Grid, cover: Grid, colour: Grid) -> None:
    """Lay `colour` (3,) or (h, w, 3) over `canvas` (h, w, 3) in place, as far as `cover` (h, w) says."""
    canvas += cover[:, :, None] * (colour - canvas)


@cache
def _stretch(cells: int) -> tuple[NDArray[np.int64], Grid]:
    """Where each of SIZE pixels lies among `cells` cells: the cell's number, and how far into the cell."""
    where = np.arange(SIZE) * (cells / SIZE)
    return where.astype(np.int64), where - np.floor(where)


def _texture(draw: Draw) -> Grid:
    """(h, w) in [-1, 1]: soft clouds, stripes at any angle, or a mixture."""
    cells = 2 + int(draw() * 7)
    cell, into = _stretch(cells)
    coarse: Grid = draw((cells + 1, cells + 1)) * 2 - 1
    rows = coarse[cell] + (coarse[cell + 1] - coarse[cell]) * into[:, None]
    clouds = rows[:, cell] + (rows[:, cell + 1] - rows[:, cell]) * into  # bilinear; a matrix product may round anew
    angle, period, share = draw() * math.tau, _between(draw, 3, 12), max(0.0, _between(draw, -0.6, 1))
    phase = (X * math.cos(angle) + Y * math.sin(angle)) / period + draw()
    stripes = np.abs((phase - np.floor(phase)) * 4 - 2) - 1
    texture: Grid = clouds * (1 - share) + stripes * share
    return texture


def _place(draw: Draw) -> tuple[Grid, Grid, float]:
    """Coordinates (u, v) of a shape at a random pose, and the pixels that one unit of distance is worth."""
    radius, squeeze = _between(draw, 8, 13), _between(draw, 0.75, 1)
    angle, shear = draw() * math.tau, _between(draw, -0.2, 0.2)
    margin = 0.85 * radius
    dx, dy = (axis - _between(draw, margin, SIZE - margin) for axis in (X, Y))
    u = (math.cos(angle) * dx + math.sin(angle) * dy) / radius
    v = (math.cos(angle) * dy - math.sin(angle) * dx) / (radius * squeeze)
    return u + shear * v, v, radius * squeeze


def _line(draw: Draw) -> Grid:
    """Cover of a straight line across the picture, one to two pixels wide."""
    angle, x, y = draw() * math.tau, draw() * SIZE, draw() * SIZE
    across = np.abs(math.cos(angle) * (X - x) + math.sin(angle) * (Y - y))
    return _cover(across - _between(draw, 0.3, 1.1), 1.0)


def _blob(draw: Draw) -> Grid:
    """Cover of a small ellipse or box, or of a piece of one of the ten shapes, too small to be the subject."""
    x, y, radius, kind = draw() * SIZE, draw() * SIZE, _between(draw, 1.2, 3.6), draw()
    u, v = (X - x) / radius, (Y - y) / (radius * _between(draw, 0.5, 1))
    if kind < 0.5:
        return _cover(_disc(u, v), radius)
    return _cover(_rectangle(u + v, u - v, 1.2, 1.2) if kind < 0.75 else _rectangle(u, v, 1, 1), radius)


def _clutter(draw: Draw, canvas: Grid, count: int) -> Grid:
    """Paint `count` lines and blobs; returns what they cover (h, w)."""
    covered = np.zeros((SIZE, SIZE))
    for _ in range(count):
        cover = _line(draw) if draw() < 0.5 else _blob(draw)
        _paint(canvas, cover, _soft(draw))
        covered = np.maximum(covered, cover)
    return covered


def _soft(draw: Draw) -> Grid:
    """A colour (3,) that is seldom garish."""
    grey = float(draw())
    colour: Grid = grey + (draw(3) - grey) * 0.6
    return colour


def _colours(draw: Draw) -> tuple[Grid, Grid]:
    """Background and shape colour (3,), between 0.3 and 0.6 apart in at least one channel."""
    ground, tint = _soft(draw), draw(3) * 2 - 1
    tint *= _between(draw, 0.3, 0.6) / np.abs(tint).max()
    return ground, np.where((ground + tint < 0) | (ground + tint > 1), ground - tint, ground + tint)


def image(seed: int, i: int) -> tuple[NDArray[np.uint8], int, NDArray[np.bool_], Box]:
    """Image i: pixels (32, 32, 3) uint8, label i mod 10, mask (32, 32) of the shape's visible pixels, and its box."""
    draw = np.random.default_rng([seed, i]).random
    label = i % len(CLASSES)
    ground, fill = _colours(draw)
    canvas = ground + _texture(draw)[:, :, None] * (draw(3) - 0.5) * _between(draw, 0.1, 0.5)
    _clutter(draw, canvas, int(draw() * 4))
    u, v, scale = _place(draw)
    cover = _cover(DISTANCES[CLASSES[label]](u, v), scale)
    _paint(canvas, cover, fill + _texture(draw)[:, :, None] * (draw(3) - 0.5) * _between(draw, 0.0, 0.4))
    mask = (cover > 0.5) & (_clutter(draw, canvas, int(draw() * 2)) <= 0.5)
    light = 1 + ((X - 16) * _between(draw, -1, 1) + (Y - 16) * _between(draw, -1, 1)) / 64
    canvas = canvas * light[:, :, None] + (draw((SIZE, SIZE, 3)) - 0.5) * _between(draw, 0.03, 0.2)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), label, mask, _box(mask)


def _box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def make(
    count: int, seed: int = 0, start: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Images start … start + count - 1: x (n, 32, 32, 3), y (n,), masks (n, 32, 32), boxes (n, 4)."""
    x, y, masks, boxes = zip(*(image(seed, i) for i in range(start, start + count)), strict=True)
    return np.stack(x), np.array(y, np.int64), np.stack(masks), np.array(boxes, np.int64)
