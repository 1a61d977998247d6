"""Cars, trucks, buses and trains: prisms with windows, wheels and lights, in perspective."""

from dataclasses import dataclass, field

import numpy as np

from fullres.pipeline.scenes.canvas import BUS, CAR, TRAIN, TRUCK, Canvas

LENGTH = {CAR: 4.4, TRUCK: 8.5, BUS: 11.5, TRAIN: 30.0}

RUBBER, HUB, RED, AMBER, WHITE = (28, 28, 30), (150, 150, 155), (190, 25, 25), (245, 170, 40), (245, 245, 235)


@dataclass
class Face:
    """A flat face in the vehicle's own metres (x across, y up, z forward) and what is painted on it."""

    corners: np.ndarray
    colour: np.ndarray
    decals: list[tuple[np.ndarray, tuple]] = field(default_factory=list)


def _prism(profile, width: float, colour, on_sides=(), on_strips=None) -> list[Face]:
    """A side profile of (z, y) pushed across `width`.

    `on_sides` are (polygon of (z, y), colour), painted on both sides. `on_strips` maps the index of the
    profile's edge to decals (polygon of (u, v), colour): u in 0..1 across, v in 0..1 along the edge.
    """
    profile = np.asarray(profile, np.float64)
    colour = np.asarray(colour, np.float64)

    def at(x, points):
        points = np.asarray(points, np.float64)
        return np.column_stack([np.full(len(points), x), points[:, 1], points[:, 0]])

    faces = [
        Face(at(x, profile), colour, [(at(x, polygon), paint) for polygon, paint in on_sides])
        for x in (-width / 2, width / 2)
    ]
    for i, (start, end) in enumerate(zip(profile, np.roll(profile, -1, axis=0), strict=True)):
        face = Face(np.concatenate([at(-width / 2, [start, end]), at(width / 2, [end, start])]), colour)
        for polygon, paint in (on_strips or {}).get(i, ()):
            polygon = np.asarray(polygon, np.float64)
            along = start + polygon[:, 1:] * (end - start)
            across = (polygon[:, 0] - 0.5) * width
            face.decals.append((np.column_stack([across, along[:, 1], along[:, 0]]), paint))
        faces.append(face)
    return faces


def _rectangle(left: float, bottom: float, right: float, top: float) -> list[tuple]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _wheel(z: float, radius: float) -> list[tuple]:
    turn = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    centre = (z, radius)
    return [(centre + radius * circle, RUBBER), (centre + 0.55 * radius * circle, HUB)]


def _end(lamp, tyre_depth: float, lamp_height: float, plate: bool = True) -> list[tuple]:
    """The lamps, the plate and the tyres of a front or rear; tyres reach `tyre_depth` below the edge."""
    decals = [
        (_rectangle(0.04, -tyre_depth, 0.16, 0.05), RUBBER),
        (_rectangle(0.84, -tyre_depth, 0.96, 0.05), RUBBER),
        (_rectangle(0.04, lamp_height, 0.2, lamp_height + 0.2), lamp),
        (_rectangle(0.8, lamp_height, 0.96, lamp_height + 0.2), lamp),
    ]
    return [*decals, (_rectangle(0.38, 0.25, 0.62, 0.4), WHITE)] if plate else decals


def _flip(decals: list[tuple]) -> list[tuple]:
    """The same decals for an edge that runs downwards."""
    return [([(u, 1 - v) for u, v in polygon], paint) for polygon, paint in decals]


def _car(rng, paint, glass) -> list[list[Face]]:
    length, roof = rng.uniform(3.9, 4.8), rng.uniform(1.4, 1.75)
    boot, bonnet = rng.uniform(0.05, 0.8), rng.uniform(0.7, 1.2)
    slope = rng.uniform(0.3, 0.6)
    waist, hood = 0.95, 0.85
    front = length - bonnet
    profile = [
        (0, 0.28), (0, waist), (boot, waist + 0.05), (boot + slope, roof),
        (front - 0.8, roof), (front, waist), (length, hood - 0.1), (length, 0.28),
    ]  # fmt: skip
    middle = (boot + front) / 2 - 0.1
    top = roof - 0.1
    sill, behind, ahead = waist + 0.05, middle - 0.05, middle + 0.05
    seam = tuple(0.6 * np.asarray(paint))
    sides = [
        ([(boot + 0.3, sill), (behind, sill), (behind, top), (boot + slope + 0.1, top)], glass),
        ([(ahead, sill), (front - 0.15, sill), (front - 0.85, top), (ahead, top)], glass),
        (_rectangle(0, 0.28, length, 0.38), seam),
        (_rectangle(middle - 0.03, 0.4, middle + 0.03, waist), seam),
        *_wheel(0.8, 0.33),
        *_wheel(length - 0.85, 0.33),
    ]
    pane = [(_rectangle(0.1, 0.08, 0.9, 0.92), glass)]
    strips = {0: _end(RED, 0.42, 0.6), 2: pane, 4: pane, 6: _flip(_end(WHITE, 0.6, 0.5))}
    return [_prism(profile, 1.8, paint, sides, strips)]


def _bus(rng, paint, glass) -> list[list[Face]]:
    length, top = rng.uniform(10.5, 12.5), rng.uniform(2.9, 3.3)
    profile = [
        (0, 0.35),
        (0, top - 0.1),
        (0.15, top),
        (length - 0.2, top),
        (length, top - 0.25),
        (length, 0.35),
    ]
    trim = tuple(rng.uniform(20, 235, 3))
    panes = [(_rectangle(z, 1.35, z + 1.2, top - 0.5), glass) for z in np.arange(0.4, length - 1.3, 1.4)]
    dark = tuple(0.8 * np.asarray(glass))
    doors = [(_rectangle(z, 0.4, z + 1.1, top - 0.55), dark) for z in (length - 1.6, 5.0)]
    wheels = [*_wheel(2.6, 0.48), *_wheel(length - 2.9, 0.48)]
    sides = [(_rectangle(0, 0.35, length, 0.75), trim), *panes, *doors, *wheels]
    rear = [
        *_end(RED, 0.13, 0.2),
        (_rectangle(0.12, 0.45, 0.88, 0.8), glass),
        (_rectangle(0.3, 0.84, 0.7, 0.93), AMBER),
    ]
    front = [
        *_end(WHITE, 0.13, 0.1),
        (_rectangle(0.05, 0.35, 0.95, 0.84), glass),
        (_rectangle(0.2, 0.87, 0.8, 0.98), AMBER),
    ]
    return [_prism(profile, 2.55, paint, sides, {0: rear, 4: _flip(front)})]


def _truck(rng, paint, glass) -> list[list[Face]]:
    length, top = rng.uniform(7.0, 10.0), rng.uniform(3.2, 3.9)
    cab, box = length - 2.0, length - 2.3
    cargo = rng.uniform(90, 240, 3) if rng.random() < 0.6 else rng.uniform(30, 220, 3)
    seam = tuple(0.75 * cargo)
    ribs = [(_rectangle(z, 0.95, z + 0.08, top), seam) for z in np.arange(0.5, box, 0.9)]
    doors = [(_rectangle(u, 0.03, u + 0.04, 0.97), seam) for u in (0.1, 0.48, 0.86)]
    doors.append((_rectangle(0.02, 0.0, 0.98, 0.04), RED))
    body = _prism([(0, 0.95), (0, top), (box, top), (box, 0.95)], 2.5, cargo, ribs, {0: doors})
    chassis_sides = [decal for z in (1.2, 2.4, length - 1.0) for decal in _wheel(z, 0.5)]
    frame = [(0.1, 0.5), (0.1, 0.95), (length, 0.95), (length, 0.5)]
    chassis = _prism(frame, 2.3, (45, 45, 48), chassis_sides, {0: _end(RED, 1.1, 0.4)})
    window = [(cab + 0.5, 1.7), (length - 0.25, 1.7), (length - 0.45, 2.5), (cab + 0.5, 2.5)]
    front = [*_end(WHITE, 0.3, 0.05), (_rectangle(0.2, 0.35, 0.8, 0.7), tuple(0.5 * np.asarray(paint)))]
    screen = (_rectangle(0.07, 0.08, 0.93, 0.95), glass)
    outline = [(cab, 0.5), (cab, 2.75), (length - 0.5, 2.75), (length, 1.65), (length, 0.5)]
    sides = [(window, glass), *_wheel(length - 1.0, 0.5)]
    driver = _prism(outline, 2.4, paint, sides, {2: [screen], 3: _flip(front)})
    return [chassis, body, driver]


def _train(rng, paint, glass) -> list[list[Face]]:
    top, car = 3.4, 9.8
    stripe = tuple(rng.uniform(20, 240, 3))
    parts = []
    for first, last, z in ((True, False, 0.0), (False, False, car + 0.4), (False, True, 2 * (car + 0.4))):
        end = z + car
        profile = [
            (z, 0.25),
            (z, 1.5),
            (z + 0.7 * first, top),
            (end - 0.7 * last, top),
            (end, 1.5),
            (end, 0.25),
        ]
        band = (_rectangle(z + 0.8 * first, 1.55, end - 0.8 * last, 2.7), glass)
        posts = [(_rectangle(p, 1.55, p + 0.12, 2.7), paint) for p in np.arange(z + 1.6, end - 1.2, 1.9)]
        sides = [
            (_rectangle(z, 0.25, end, 0.5), (50, 50, 52)),
            (_rectangle(z, 1.0, end, 1.45), stripe),
            band,
            *posts,
            (_rectangle(z + 4.2, 0.45, z + 5.6, 2.8), stripe),
            (_rectangle(z + 4.4, 1.3, z + 5.4, 2.6), glass),
        ]
        lamps = [(_rectangle(u, 0.35, u + 0.15, 0.5), WHITE) for u in (0.1, 0.75)]
        face = [(_rectangle(0, 0.6, 1, 0.95), stripe), *lamps]
        screen = [(_rectangle(0.06, 0.05, 0.94, 0.7), glass), (_rectangle(0.25, 0.76, 0.75, 0.92), AMBER)]
        strips = {0: face, 1: screen} if first else {}
        strips |= {4: _flip(face), 3: _flip(screen)} if last else {}
        parts.append(_prism(profile, 2.5, paint, sides, strips))
    current = 1.5 * car
    bow = [(current, top), (current - 0.8, top + 0.8), (current, top + 1.6), (current + 0.1, top + 1.5)]
    return [*parts, _prism(bow, 0.2, (40, 40, 42))]


_BUILDERS = {CAR: _car, TRUCK: _truck, BUS: _bus, TRAIN: _train}


def vehicle(canvas: Canvas, rng: np.random.Generator, label: int, x: float, z: float, heading: float) -> None:
    """Draw a car, truck, bus or train with its middle at (x, z); heading 0 drives away, pi comes closer."""
    grey = rng.random() < 0.45
    paint = np.full(3, rng.uniform(25, 240)) + rng.normal(0, 6, 3) if grey else rng.uniform(20, 235, 3)
    glass = tuple(rng.uniform(25, 75) + np.array([0, 4, 10]) + rng.uniform(0, 50) * (rng.random() < 0.4))
    parts = _BUILDERS[label](rng, paint, glass)

    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    corners = np.concatenate([face.corners for part in parts for face in part])
    offset = np.array([x, 0, z]) - turn @ np.array([0, 0, corners[:, 2].max() / 2])
    eye = np.array([0, canvas.camera.height, 0])

    def distance(part):
        return min(np.linalg.norm(turn @ face.corners.mean(axis=0) + offset - eye) for face in part)

    for part in sorted(parts, key=distance, reverse=True):
        middle = turn @ np.mean([face.corners.mean(axis=0) for face in part], axis=0) + offset
        visible = []
        for face in part:
            points = face.corners @ turn.T + offset
            centre = points.mean(axis=0)
            spokes = points - centre
            normal = np.cross(spokes, np.roll(spokes, -1, axis=0)).sum(axis=0)
            normal /= np.linalg.norm(normal) + 1e-9
            if np.dot(normal, centre - middle) < 0:
                normal = -normal
            if np.dot(normal, eye - centre) > 0:
                visible.append((np.linalg.norm(centre - eye), face, points, canvas.light.on(normal)))
        for _, face, points, bright in sorted(visible, key=lambda item: -item[0]):
            canvas.quad(points, face.colour * bright, label)
            for decal, colour in face.decals:
                canvas.quad(decal @ turn.T + offset, np.asarray(colour) * (0.4 + 0.6 * bright), label)
