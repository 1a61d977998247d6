"""What stands along a street: buildings, walls, fences, hedges, poles, traffic lights and signs."""

import numpy as np

from fullres.pipeline.scenes.canvas import (
    BUILDING,
    FENCE,
    LIGHT,
    PLASTER,
    POLE,
    SIGN,
    VEGETATION,
    WALL,
    Canvas,
)
from fullres.pipeline.scenes.figures import disc, leaves


def _along(x: float, start: float, end: float, low: float, high: float) -> np.ndarray:
    """A rectangle upright and parallel to the road."""
    return np.array([(x, low, start), (x, low, end), (x, high, end), (x, high, start)])


def _across(left: float, right: float, low: float, high: float, z: float) -> np.ndarray:
    """A rectangle upright and facing the camera."""
    return np.array([(left, low, z), (right, low, z), (right, high, z), (left, high, z)])


def _masonry(rng) -> np.ndarray:
    """Plaster, brick, concrete, or paint of any pale colour."""
    grey = rng.uniform(70, 225)
    hues = [(1, 1, 1), (1.04, 0.97, 0.86), (1.1, 0.78, 0.66), (0.9, 0.97, 1.08), (0.98, 1.02, 0.9)]
    return grey * rng.choice(hues)


def building(canvas: Canvas, rng: np.random.Generator, side: int, x: float, start: float, end: float) -> None:
    """A house along the road with its roof, rows of windows and a ground floor of doors and shops."""
    storey = rng.uniform(2.8, 3.6)
    floors = int(rng.integers(2, 8))
    top = floors * storey + 0.8
    paint, roof = _masonry(rng), rng.uniform(40, 140) * rng.choice([(1.2, 0.85, 0.75), (1, 1, 1.05)])
    street, gable = canvas.light.on((-side, 0, 0)), canvas.light.on((0, 0, -1))
    deep = x + side * 12
    if rng.random() < 0.5:
        ridge = x + side * 4
        slope = [(x, top, start), (x, top, end), (ridge, top + 4, end), (ridge, top + 4, start)]
        canvas.quad(slope, roof * 0.9, BUILDING, PLASTER)
        triangle = [(x, top, start), (ridge, top + 4, start), (deep, top, start)]
        canvas.quad(triangle, paint * gable * 0.9, BUILDING)
    front(canvas, rng, x, deep, top, start, paint * gable)
    canvas.quad(_along(x, start, end, 0, top), paint * street, BUILDING, PLASTER)
    canvas.quad(_along(x, start, end, 0, 0.7), paint * street * 0.7, BUILDING, PLASTER)
    canvas.quad(_along(x, start, end, top - 0.35, top), paint * street * 1.15, BUILDING)

    wide, high, pitch = rng.uniform(0.9, 1.9), rng.uniform(1.2, 2.0), rng.uniform(2.2, 3.4)
    glass = rng.uniform(25, 110) + np.array([0, 3, 8])
    trim = paint * street * rng.choice([0.75, 1.25])
    first = start + (pitch - wide) / 2
    bays = np.arange(first, end - wide - 0.2, pitch)
    rows = np.arange(1, floors) * storey + 0.9
    panes = np.array([(z, y) for y in rows for z in bays]).reshape(-1, 2)
    if panes.size and canvas.camera.scale(start) * wide > 1:
        _windows(canvas, x, panes, wide + 0.24, high + 0.24, -0.12, trim)
        _windows(canvas, x, panes, wide, high, 0.0, glass)
        lit = panes[rng.random(len(panes)) < 0.3]
        _windows(canvas, x, lit, wide, high * 0.5, 0.0, glass + rng.uniform(30, 110))
        _windows(canvas, x, panes, wide, 0.07, high / 2, trim)
    shop = rng.random() < 0.5
    for z in bays:
        colour = glass * rng.uniform(0.5, 1.1) if shop else paint * street * rng.uniform(0.3, 0.7)
        if shop or rng.random() < 0.6:
            low = 0.4 if shop else 0.05
            canvas.quad(_along(x, z, z + wide * 1.1, low, 2.4), colour, BUILDING)
    if shop:
        canvas.quad(_along(x, start + 0.5, end - 0.5, 2.6, 3.2), rng.uniform(20, 230, 3), BUILDING)


def front(
    canvas: Canvas, rng: np.random.Generator, left: float, right: float, high: float, z: float, paint
) -> None:
    """The face of a house towards the camera, with its rows of windows."""
    canvas.quad(_across(left, right, 0, high, z), paint, BUILDING, PLASTER)
    pitch, tall = rng.uniform(2.2, 3.8), rng.uniform(1.0, 1.7)
    if canvas.camera.scale(z) * pitch < 6:
        return
    glass = rng.uniform(25, 130) + np.array([0, 3, 8])
    start, step = (left, pitch) if left < right else (left, -pitch)
    panes = [
        canvas.camera.project(_across(x + 0.3 * step, x + 0.75 * step, y, y + tall, z))
        for y in np.arange(3.8, high - tall - 0.4, 3.1)
        for x in np.arange(start, right - 0.7 * step, step)
    ]
    if panes and z > 1.5:
        canvas.fill(panes, glass, BUILDING, z)


def _windows(canvas, x, panes, wide: float, high: float, shift: float, colour) -> None:
    """All windows of a facade at once; `panes` are their lower near corners (z, y)."""
    if len(panes) == 0:
        return
    z, y = panes[:, 0] + min(shift, 0), panes[:, 1] + shift
    corners = [(z, y), (z + wide, y), (z + wide, y + high), (z, y + high)]
    quads = np.stack([np.column_stack([np.full(len(z), x), b, a]) for a, b in corners], axis=1)
    quads = quads[quads[:, 0, 2] > 1.5]
    if len(quads):
        depth = float(quads[..., 2].mean())
        canvas.fill(list(canvas.camera.project(quads)), colour, BUILDING, depth)


def wall(canvas: Canvas, rng: np.random.Generator, side: int, x: float, start: float, end: float) -> None:
    """A free-standing wall: courses of blocks under a coping, or concrete panels with seams."""
    high = rng.uniform(1.7, 3.2)
    paint = _masonry(rng) * canvas.light.on((-side, 0, 0))
    canvas.quad(_across(x, x + side * 0.4, 0, high, start), paint * 0.8, WALL, PLASTER)
    canvas.quad(_along(x, start, end, 0, high), paint, WALL, PLASTER)
    courses = rng.random() < 0.6
    seam = paint * rng.choice([0.62, 1.3])
    scale = canvas.camera.scale(start)
    if courses and scale * 0.4 > 3:
        for row, y in enumerate(np.arange(0.4, high - 0.2, 0.4)):
            canvas.quad(_along(x, start, min(end, 40), y, y + 0.04), seam, WALL)
            for z in np.arange(start + 0.5 * (row % 2), min(end, start + 14), 1.0):
                canvas.quad(_along(x, z, z + 0.05, y - 0.4, y), seam, WALL)
    for z in np.arange(start, end, 3.0):
        canvas.quad(_along(x, z, z + (0.1 if courses else 0.25), 0, high), seam, WALL)
    canvas.quad(_along(x, start, end, high - 0.15, high + 0.1), paint * 1.25, WALL)


def fence(canvas: Canvas, rng: np.random.Generator, side: int, x: float, start: float, end: float) -> None:
    """A fence of bars or mesh between posts; what shows through it is fence as well."""
    high = rng.uniform(1.1, 2.2)
    paint = rng.uniform(25, 225) * rng.choice([(1, 1, 1), (1.05, 0.95, 0.8), (0.75, 1.0, 0.8)])
    outline = canvas.camera.project(_along(x, start, end, 0.05, high))
    canvas.veil(outline, paint, FENCE, (start + end) / 2, 0.25)
    mesh = rng.random() < 0.4
    for y in (0.2, high - 0.12):
        canvas.quad(_along(x, start, end, y, y + 0.09), paint, FENCE)
    z = start
    while z < end:
        # Bars keep some pixels of distance, or far away they would close to a wall.
        step = max(0.18, 5 * z * z / (canvas.camera.focal * abs(x)) * canvas.labels.shape[0] / 1024)
        foot, head = canvas.camera.project([(x, 0.1, z), (x, high, z)])
        width = max(1.0, 0.035 * canvas.camera.scale(z))
        canvas.stroke([foot, head], width, paint, FENCE, z)
        if mesh:
            next_foot, next_head = canvas.camera.project([(x, 0.1, z + step), (x, high, z + step)])
            canvas.stroke([foot, next_head], width * 0.6, paint * 0.85, FENCE, z)
            canvas.stroke([next_foot, head], width * 0.6, paint * 0.85, FENCE, z)
        z += step * (2 if mesh else 1)
    for z in np.arange(start, end, 2.5):
        canvas.quad(_along(x, z, z + 0.1, 0, high + 0.1), paint * 0.8, FENCE)


def hedge(
    canvas: Canvas, rng: np.random.Generator, side: int, x: float, start: float, end: float, colour
) -> None:
    """A hedge of leafy blobs."""
    high = rng.uniform(1.2, 3.0)
    canvas.quad(_along(x, start, end, 0, high * 0.8), np.asarray(colour) * 0.5, VEGETATION)
    for z in np.geomspace(end, max(start, 1.5), 14):
        centre = canvas.camera.project((x, high * 0.5, z))
        radii = np.array([0.5, 0.5]) * high * canvas.camera.scale(z)
        leaves(canvas, rng, centre, radii, z, colour, 9)


def _post(canvas, x, z, high, wide, colour) -> tuple[float, float, float]:
    """A pole; returns its top in pixels and the pixels of a metre."""
    foot, top = canvas.camera.project([(x, 0, z), (x, high, z)])
    scale, unit = canvas.camera.scale(z), canvas.labels.shape[0] / 1024
    # Between 1 and 8 pixels at 2048 x 1024, like the poles of street photographs.
    canvas.upright(foot[0], top[1], foot[1], np.clip(wide * scale, unit, 8 * unit), colour, POLE, z)
    return foot[0], top[1], scale


def _metal(rng) -> np.ndarray:
    return rng.uniform(50, 190) * np.array([1.0, 1.0, 1.03])


def lamp_post(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    paint, high, reach = _metal(rng), rng.uniform(5.5, 9.0), rng.uniform(0.8, 2.0)
    column, top, scale = _post(canvas, x, z, high, rng.uniform(0.1, 0.18), paint)
    toward = -np.sign(x) * reach * scale
    bow = [
        (column, top + 0.1 * scale),
        (column + 0.4 * toward, top - 0.3 * scale),
        (column + toward, top - 0.35 * scale),
    ]
    canvas.stroke(bow, min(0.08 * scale, 6), paint, POLE, z)
    lamp = [(column + toward, top - 0.35 * scale), (column + 1.35 * toward, top - 0.3 * scale)]
    canvas.stroke(lamp, 0.16 * scale, paint * 1.2, POLE, z)


def bollard(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A waist-high post."""
    _post(canvas, x, z, rng.uniform(0.8, 1.2), 0.1, _metal(rng))


def mast(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A plain tall pole with two cross-arms, as along a tramway."""
    paint = _metal(rng)
    column, top, scale = _post(canvas, x, z, rng.uniform(6.5, 8.0), rng.uniform(0.12, 0.2), paint)
    for drop in (0.3, 1.1):
        arm = [(column - 1.2 * scale, top + drop * scale), (column + 1.2 * scale, top + drop * scale)]
        canvas.stroke(arm, min(0.05 * scale, 5), paint, POLE, z)


def _signal(canvas, rng, column: float, y: float, scale: float, z: float) -> None:
    """The three lamps of a traffic light in their housing, about pixel (column, y)."""
    housing = rng.choice([(24, 26, 25), (60, 62, 60), (95, 90, 40)])
    half, tall = 0.19 * scale, 0.5 * scale
    box = np.add((column, y), [(-half, -tall), (half, -tall), (half, tall), (-half, tall)])
    canvas.fill([box], housing, LIGHT, z)
    lit = rng.integers(3)
    for i, colour in enumerate([(255, 50, 40), (255, 185, 40), (60, 255, 150)]):
        bright = np.asarray(colour) * (1.0 if i == lit else 0.22)
        canvas.fill([disc((column, y + (i - 1) * 0.31 * scale), 0.125 * scale)], bright, LIGHT, z)


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A pole with a traffic light, and often a second one on an arm over the road."""
    paint = _metal(rng)
    over = rng.random() < 0.5
    column, top, scale = _post(canvas, x, z, 5.6 if over else rng.uniform(3.0, 3.6), 0.13, paint)
    foot = top + (5.6 if over else 3.3) * scale
    if over:
        reach = -np.sign(x) * rng.uniform(2.5, 4.5) * scale
        canvas.stroke(
            [(column, top + 0.1 * scale), (column + reach, top)], min(0.09 * scale, 7), paint, POLE, z
        )
        _signal(canvas, rng, column + reach, top + 0.1 * scale, scale, z)
    _signal(canvas, rng, column, foot - 2.75 * scale, scale, z)


_RED, _BLUE, _WHITE, _YELLOW = (190, 25, 35), (30, 75, 170), (235, 235, 230), (235, 190, 40)
_SIGN_COLOURS = [  # rim and face
    (_RED, _WHITE),
    (_BLUE, _BLUE),
    (_WHITE, _BLUE),
    (_RED, _RED),
    (_WHITE, _YELLOW),
    (_WHITE, _RED),
]


def traffic_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A pole with one or two signs: round, triangular, eight-cornered or rectangular."""
    high = rng.uniform(2.3, 3.2)
    column, top, scale = _post(canvas, x, z, high, 0.07, _metal(rng))
    y = top + 0.35 * scale
    for _ in range(int(rng.integers(1, 3))):
        size = rng.uniform(0.32, 0.48) * scale
        _plate(canvas, rng, np.array([column, y]), size, z)
        y += 2.1 * size


def _plate(canvas, rng, centre, size: float, z: float) -> None:
    corners, first = [(3, -np.pi / 2), (3, np.pi / 2), (4, np.pi / 4), (8, np.pi / 8), (20, 0.0)][
        rng.integers(5)
    ]
    turn = first + 2 * np.pi * np.arange(corners) / corners
    outline = np.column_stack([np.cos(turn), np.sin(turn)]) * size
    rim, face = _SIGN_COLOURS[rng.integers(len(_SIGN_COLOURS))]
    worn = rng.uniform(0.6, 1.05)
    canvas.fill([centre + outline], np.asarray(rim) * worn, SIGN, z)
    canvas.fill([centre + 0.76 * outline], np.asarray(face) * worn, SIGN, z)
    ink = (20, 20, 20) if face is _WHITE or face is _YELLOW else _WHITE
    for _ in range(2):
        a, b = rng.uniform(-0.4, 0.4, (2, 2)) * size
        canvas.stroke([centre + a, centre + b], 0.16 * size, np.asarray(ink) * worn, SIGN, z)


def board(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A direction board on two poles at the roadside."""
    wide, low = rng.uniform(1.6, 2.8), rng.uniform(2.2, 3.0)
    paint = _metal(rng)
    for dx in (-0.35 * wide, 0.35 * wide):
        _post(canvas, x + dx, z, low + 0.9, 0.08, paint)
    face = np.asarray([_BLUE, _YELLOW, _WHITE, (20, 110, 60)][rng.integers(4)]) * rng.uniform(0.6, 1.05)
    canvas.quad(_across(x - wide / 2, x + wide / 2, low, low + 1.1, z), np.full(3, 225), SIGN)
    canvas.quad(_across(x - wide / 2 + 0.06, x + wide / 2 - 0.06, low + 0.06, low + 1.04, z), face, SIGN)
    ink = np.full(3, 235 if face.mean() < 140 else 25)
    for y in (0.25, 0.65):
        end = rng.uniform(0.1, 0.4) * wide
        canvas.quad(_across(x - 0.4 * wide, x + end, low + y, low + y + 0.16, z), ink, SIGN)
