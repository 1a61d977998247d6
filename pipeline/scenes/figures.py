"""Persons, riders, bicycles, motorcycles and trees: flat figures that stand upright and face the camera."""

import numpy as np

from fullres.pipeline.scenes.canvas import (
    BICYCLE,
    CLOTH,
    LEAF,
    LEAF_FAR,
    MOTORCYCLE,
    PERSON,
    PLAIN,
    RIDER,
    VEGETATION,
    Canvas,
)


class Figure:
    """Draws one label in metres: x to the right of the figure's foot, y up; `squash` turns it edgeways."""

    def __init__(
        self, canvas: Canvas, label: int, x: float, z: float, squash: float = 1.0, surface: int = PLAIN
    ):
        self.canvas, self.label, self.depth, self.surface = canvas, label, z, surface
        self.foot = canvas.camera.project((x, 0, z))
        self.scale = np.array([squash, -1.0]) * canvas.camera.scale(z)

    def at(self, points) -> np.ndarray:
        return self.foot + np.asarray(points, np.float64) * self.scale

    def fill(self, points, colour) -> None:
        self.canvas.fill([self.at(points)], colour, self.label, self.depth, self.surface)

    def limb(self, points, width: float, colour) -> None:
        width = width * -self.scale[1]
        self.canvas.stroke(self.at(points), width, colour, self.label, self.depth, self.surface)

    def disc(self, centre, radius: float, colour) -> None:
        self.fill(disc(centre, radius), colour)

    def glass_disc(self, centre, radius: float, colour, opacity: float) -> None:
        polygon = self.at(disc(centre, radius))
        self.canvas.veil(polygon, colour, self.label, self.depth, opacity)


def disc(centre, radius: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.asarray(centre) + radius * np.column_stack([np.cos(turn), np.sin(turn)])


def _skin(rng) -> np.ndarray:
    return np.array([225, 180, 150]) * rng.uniform(0.35, 1.05)


def _cloth(rng) -> np.ndarray:
    grey = np.full(3, rng.uniform(20, 230))
    return grey + rng.normal(0, 8, 3) if rng.random() < 0.5 else rng.uniform(15, 235, 3)


def person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A walking or standing person; children are smaller, some carry a bag."""
    tall = rng.uniform(1.55, 1.9) if rng.random() < 0.88 else rng.uniform(1.0, 1.4)
    figure = Figure(canvas, PERSON, x, z, rng.choice([-1.0, 1.0]), CLOTH)
    top, trousers, skin = _cloth(rng), _cloth(rng), _skin(rng)
    hair = rng.uniform(15, 60) * np.array([1.3, 1.0, 0.8])
    stride = rng.uniform(0.0, 0.2) * tall
    hip, shoulder, wide = 0.5 * tall, 0.82 * tall, rng.uniform(0.11, 0.15) * tall
    shoe = np.full(3, rng.uniform(20, 200))
    for side in (-1, 1):
        knee = (side * stride * 0.6 + 0.02, 0.27 * tall)
        ankle = (side * (stride + 0.05) - 0.04 * (side < 0), 0.04)
        shaded = trousers * (0.8 if side < 0 else 1.0)
        figure.limb([(side * 0.06, hip), knee, ankle], 0.075 * tall, shaded)
        figure.limb([ankle, (ankle[0] + 0.12, 0.02)], 0.07, shoe)
    swing = rng.uniform(0.02, 0.16) * tall
    sleeve, elbow = (-wide, shoulder - 0.04), (-wide - 0.03 + swing, 0.64 * tall)
    figure.limb([sleeve, elbow, (swing * 1.6 - wide, 0.5 * tall)], 0.055 * tall, top * 0.75)
    bottom = hip - 0.06 * tall if rng.random() < 0.7 else 0.3 * tall  # a jacket or a coat
    waist, edge, neck = 0.62 * tall, shoulder - 0.02, shoulder + 0.03
    torso = np.array(
        [
            (-1, bottom),
            (1, bottom),
            (0.85, waist),
            (1, edge),
            (0.4, neck),
            (-0.4, neck),
            (-1, edge),
            (-0.85, waist),
        ]
    )
    figure.fill(torso * (wide, 1), top)
    figure.fill(np.array([(0.35, bottom), (1, bottom), (1, edge), (0.5, shoulder)]) * (wide, 1), top * 0.82)
    elbow = (wide + 0.03 - swing, 0.64 * tall)
    hand = (wide - swing * 1.2 + 0.06, 0.5 * tall)
    figure.limb([(wide, shoulder - 0.04), elbow, hand], 0.055 * tall, top * 0.9)
    figure.disc(hand, 0.028 * tall, skin)
    if rng.random() < 0.3:
        strap = (-wide, 0.68 * tall)
        bag = np.add(strap, [(-0.24, -0.2), (0.04, -0.2), (0.04, 0.08), (-0.24, 0.08)])
        figure.fill(bag, rng.uniform(20, 210, 3))
    figure.limb([(0, shoulder), (0.01, 0.88 * tall)], 0.05 * tall, skin * 0.85)
    figure.disc((0.01, 0.93 * tall), 0.066 * tall, skin)
    figure.fill(disc((-0.01, 0.93 * tall), 0.07 * tall)[1:13], hair)


def _bicycle(figure: Figure, rng, loaded: bool) -> None:
    frame, r = rng.uniform(15, 230, 3), 0.34
    for hub in ((-0.52, r), (0.52, r)):
        figure.glass_disc(hub, r, (120, 120, 125), 0.25)
        rim = disc(hub, r - 0.02)
        figure.limb([*rim, rim[0]], 0.045, (25, 25, 27))
        for spoke in rim[::4]:
            figure.limb([hub, spoke], 0.01, (150, 150, 150))
    figure.limb([(-0.52, r), (-0.08, 0.3), (0.36, 0.78), (-0.2, 0.75), (-0.08, 0.3)], 0.045, frame)
    figure.limb([(-0.52, r), (-0.2, 0.75)], 0.045, frame)
    figure.limb([(0.52, r), (0.36, 0.95)], 0.045, frame)
    figure.limb([(-0.2, 0.75), (-0.24, 0.9)], 0.04, (60, 60, 60))
    if not loaded:
        figure.limb([(-0.36, 0.92), (-0.12, 0.92)], 0.08, (30, 30, 30))
    figure.limb([(0.36, 0.95), (0.3, 1.05), (0.46, 1.06)], 0.04, (40, 40, 40))


def _motorcycle(figure: Figure, rng, loaded: bool) -> None:
    paint, r = rng.uniform(15, 235, 3), 0.32
    for hub in ((-0.7, r), (0.7, r)):
        figure.disc(hub, r, (28, 28, 30))
        figure.disc(hub, 0.6 * r, (135, 135, 140))
        figure.disc(hub, 0.25 * r, (50, 50, 52))
    figure.fill([(-0.45, 0.3), (0.3, 0.25), (0.35, 0.65), (-0.4, 0.65)], (65, 65, 68))
    figure.disc((-0.02, 0.42), 0.17, (140, 140, 145))
    figure.limb([(-0.95, 0.35), (-0.1, 0.28)], 0.09, (185, 185, 190))
    figure.limb([(0.7, r), (0.42, 0.98)], 0.09, (120, 120, 125))
    tank = [(-0.95, 0.78), (-0.3, 0.6), (0.35, 0.6), (0.45, 0.85), (0.2, 0.95), (-0.1, 0.8), (-0.9, 0.92)]
    figure.fill(tank, paint)
    figure.fill([(0.42, 0.55), (0.68, 0.65), (0.66, 0.95), (0.45, 1.2), (0.35, 0.9)], paint * 0.85)
    figure.fill([(-0.85, 0.84), (-0.1, 0.8), (-0.1, 0.88), (-0.9, 0.97)], (25, 25, 28))
    figure.disc((0.66, 0.88), 0.09, (250, 245, 215))
    figure.limb([(0.4, 1.0), (0.28, 1.08)], 0.05, (30, 30, 32))


def two_wheeler(
    canvas: Canvas, rng: np.random.Generator, label: int, x: float, z: float, ridden: bool, aside: bool
) -> None:
    """A bicycle or motorcycle, with its rider where `ridden`; seen from the side where `aside`."""
    squash = rng.uniform(0.75, 1.0) if aside else rng.uniform(0.3, 0.6)
    squash *= rng.choice([-1.0, 1.0])
    figure = Figure(canvas, label, x, z, squash)
    (_bicycle if label == BICYCLE else _motorcycle)(figure, rng, ridden)
    if ridden:
        _rider(canvas, rng, x, z, squash, motor=label == MOTORCYCLE)


def _rider(canvas, rng, x, z, squash, motor: bool) -> None:
    # A body keeps its breadth when the vehicle below is seen from behind.
    figure = Figure(canvas, RIDER, x, z, np.sign(squash) * max(abs(squash), 0.6), CLOTH)
    top, trousers, skin, helmet = _cloth(rng), _cloth(rng), _skin(rng), rng.uniform(10, 245, 3)
    seat = (-0.28, 0.95)
    if motor:
        knee, foot, shoulder, hand = (0.2, 0.72), (0.0, 0.35), (0.08, 1.45), (0.34, 1.06)
    else:
        knee, foot, shoulder, hand = (0.14, 0.75), (0.0, rng.uniform(0.17, 0.35)), (0.1, 1.5), (0.38, 1.06)
    figure.limb([seat, knee, foot], 0.15, trousers)
    figure.limb([foot, (foot[0] + 0.14, foot[1] - 0.02)], 0.09, (35, 35, 35))
    figure.fill([(-0.45, 0.92), (-0.12, 0.9), (0.2, 1.3), (0.2, 1.48), (0.02, 1.58), (-0.14, 1.5)], top)
    figure.fill([(-0.45, 0.92), (-0.3, 0.9), (0.0, 1.5), (0.02, 1.58), (-0.14, 1.5)], top * 0.78)
    figure.limb([shoulder, (0.22, 1.2), hand], 0.1, top * 0.9)
    figure.disc(hand, 0.05, skin)
    head = (0.14, 1.7)
    figure.disc(head, 0.14, skin)
    helm = disc(head, 0.165)
    figure.fill(helm if motor else helm[0:11], helmet)
    if motor:
        figure.limb([(head[0] + 0.05, head[1]), (head[0] + 0.15, head[1])], 0.09, (30, 32, 38))


def leaves(canvas, rng, centre, radii, z: float, colour, count: int) -> None:
    """A cloud of leafy blobs about a pixel centre, within pixel radii, lit from above."""
    surface = LEAF if z < 30 else LEAF_FAR
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
    spots = np.column_stack([np.cos(angle), np.sin(angle)]) * reach[:, None]
    sizes = rng.uniform(0.7, 1.3, count) * min(0.4, 1.9 / np.sqrt(count))
    ragged = rng.uniform(0.7, 1.3, (count, len(turn), 1))
    centre, colour = np.asarray(centre), np.asarray(colour)
    canvas.fill([centre + 0.75 * circle * radii], colour * 0.5, VEGETATION, z, surface)
    for spot, size, edge in zip(spots, sizes, ragged, strict=True):
        bright = np.clip(0.72 - 0.35 * spot[1] + rng.normal(0, 0.12), 0.3, 1.25)
        polygon = centre + (0.8 * spot + size * edge * circle) * radii
        canvas.fill([polygon], colour * bright, VEGETATION, z, surface)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, colour) -> None:
    """A trunk, a few boughs and a crown; all of it is vegetation."""
    scale = canvas.camera.scale(z)
    figure = Figure(canvas, VEGETATION, x, z)
    tall = rng.uniform(5, 10)
    trunk, bark = rng.uniform(1.8, 3.0), rng.uniform(45, 120) * np.array([1.05, 0.95, 0.85])
    lean = rng.uniform(-0.3, 0.3)
    figure.limb([(0, 0), (lean, trunk + 0.5)], rng.uniform(0.22, 0.45), bark)
    figure.limb([(lean, trunk), (lean + 0.9, trunk + 1.5)], 0.12, bark * 0.9)
    figure.limb([(lean, trunk), (lean - 0.9, trunk + 1.3)], 0.12, bark * 0.8)
    half = (tall - trunk) / 2
    radii = np.array([half * rng.uniform(0.7, 1.1), half]) * scale
    count = int(np.clip(radii[1] * 0.8, 8, 140))
    leaves(canvas, rng, figure.at((lean, trunk + half)), radii, z, colour, count)


def bush(canvas: Canvas, rng: np.random.Generator, x: float, z: float, colour) -> None:
    """A round bush on the ground."""
    size = rng.uniform(0.4, 1.1)
    centre = canvas.camera.project((x, size * 0.7, z))
    leaves(canvas, rng, centre, np.array([1.3, 0.8]) * size * canvas.camera.scale(z), z, colour, 14)
