"""The plan of a street scene: lanes, strips, kerbs, and everything that stands or drives there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fullres.pipeline.scenes import figures, street
from fullres.pipeline.scenes.canvas import (
    BICYCLE,
    BUS,
    CAR,
    MOTORCYCLE,
    SIDEWALK,
    TERRAIN,
    TRAIN,
    TRUCK,
    Canvas,
)
from fullres.pipeline.scenes.vehicles import LENGTH, vehicle

LANE = 3.3


class Street:
    """The cross-section of the street: lanes, strips beside the road, and the line where houses stand."""

    def __init__(self, rng: np.random.Generator):
        leftward, rightward = int(rng.integers(1, 3)), int(rng.integers(0, 2))
        # (x, heading): the camera drives in the lane about 0; oncoming traffic is on the left.
        self.lanes = [(LANE * i, 0.0) for i in range(rightward + 1)]
        self.lanes += [(-LANE * (i + 1), np.pi) for i in range(leftward)]
        self.parking = {side: rng.random() < 0.55 for side in (-1, 1)}
        self.kerb = {
            side: side * (LANE * (0.5 + lanes) + 2.2 * self.parking[side])
            for side, lanes in ((-1, leftward), (1, rightward))
        }
        self.tram = int(rng.choice([-1, 1])) if rng.random() < 0.5 else 0
        self.strips: dict[int, list[tuple[int, float, float]]] = {}
        for side in (-1, 1):
            walk = (SIDEWALK, rng.uniform(2.0, 4.2))
            grass = (TERRAIN, rng.uniform(1.5, 5.0))
            order = [[walk], [walk, grass], [grass, walk], [walk, grass]][rng.integers(4)]
            if side == self.tram:
                order = [(TERRAIN, 4.2), walk, *order[2:]]
            edge, self.strips[side] = self.kerb[side], []
            for label, wide in order:
                self.strips[side].append((label, edge, edge + side * wide))
                edge += side * wide
        self.line = {side: self.strips[side][-1][2] for side in (-1, 1)}
        self.verge = {side: TERRAIN if rng.random() < 0.75 else SIDEWALK for side in (-1, 1)}
        self.crossing = rng.uniform(9, 45) if rng.random() < 0.6 else None
        self.leaf = rng.choice([(70, 105, 50), (95, 110, 60), (120, 105, 55), (60, 85, 60), (130, 90, 45)])
        self.leaf = self.leaf * rng.uniform(0.7, 1.4)

    def walks(self, side: int) -> tuple[float, float]:
        return next((near, far) for label, near, far in self.strips[side] if label == SIDEWALK)

    def track(self) -> float:
        """The middle of the tramway."""
        return self.kerb[self.tram] + self.tram * 2.1


@dataclass(frozen=True)
class Thing:
    """Something that stands on the ground: where, how large its shadow is, and how to draw it."""

    x: float
    z: float
    half_width: float
    half_length: float
    height: float
    draw: Callable[[Canvas, np.random.Generator], None]


def far_to_near(things: list[Thing]) -> list[Thing]:
    """The order to draw in: by far end, save that a long thing comes after what it screens.

    Beside a tram or a bus, whatever is farther from the middle of the road is behind it.
    """
    keys: dict[int, float] = {}
    inner: list[Thing] = []
    for thing in sorted(things, key=lambda thing: abs(thing.x)):
        screens = [
            keys[id(other)] + 1e-6
            for other in inner
            if other.x * thing.x > 0 and abs(other.z - thing.z) < other.half_length + thing.half_length
        ]
        keys[id(thing)] = max([thing.z + thing.half_length, *screens])
        inner.append(thing)
    return sorted(things, key=lambda thing: (keys[id(thing)], thing.z), reverse=True)


def furnish(plan: Street, rng: np.random.Generator) -> list[Thing]:
    """Everything that stands or moves on the street."""
    things = [*_traffic(plan, rng), *_tramway(plan, rng)]
    for side in (-1, 1):
        things += _beside_the_kerb(plan, side, rng)
        things += _on_foot(plan, side, rng)
        things += _furniture(plan, side, rng)
    if plan.crossing:
        for _ in range(int(rng.integers(0, 4))):
            x, z = rng.uniform(plan.kerb[-1], plan.kerb[1]), plan.crossing + rng.uniform(0.3, 3)
            things.append(_stand(figures.person, x, z, 0.25, 1.7))
    return things


def _drive(label: int, x: float, z: float, heading: float) -> Thing:
    half = LENGTH[label] / 2
    across, along = (half, 1.1) if abs(np.sin(heading)) > 0.7 else (1.1, half)
    return Thing(x, z, across, along, 2.0, lambda c, r: vehicle(c, r, label, x, z, heading))


def _ride(label: int, x: float, z: float, ridden: bool, aside: bool) -> Thing:
    across = 0.6 if aside else 0.3
    return Thing(x, z, across, 0.3, 1.0, lambda c, r: figures.two_wheeler(c, r, label, x, z, ridden, aside))


def _stand(kind, x: float, z: float, half_width: float, height: float) -> Thing:
    return Thing(x, z, half_width, half_width, height, lambda c, r: kind(c, r, x, z))


def _traffic(plan: Street, rng) -> Iterator[Thing]:
    for lane, heading in plan.lanes:
        z = rng.uniform(7, 24)
        while z < 130:
            label = int(rng.choice([CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE], p=[0.36, 0.18, 0.17, 0.16, 0.13]))
            if label in LENGTH:
                x, swerve = lane + rng.uniform(-0.2, 0.2), rng.uniform(-0.04, 0.04)
                yield _drive(label, x, z + LENGTH[label] / 2, heading + swerve)
            else:
                yield _ride(label, lane + rng.uniform(-1.0, 1.0), z, True, rng.random() < 0.25)
            z += LENGTH.get(label, 2.0) + rng.uniform(5, 30)
    if plan.crossing and rng.random() < 0.3:
        label = int(rng.choice([CAR, TRUCK, BUS]))
        heading = rng.choice([-1, 1]) * np.pi / 2 + rng.uniform(-0.2, 0.2)
        yield _drive(label, rng.uniform(-10, 10), plan.crossing + 6, heading)


def _tramway(plan: Street, rng) -> Iterator[Thing]:
    if not plan.tram:
        return
    for z in np.arange(rng.uniform(8, 30), 120, rng.uniform(45, 70)):
        yield _drive(TRAIN, plan.track(), z + LENGTH[TRAIN] / 2, 0.0 if plan.tram > 0 else np.pi)
    for z in np.arange(rng.uniform(8, 20), 130, 22.0):
        yield _stand(street.mast, plan.track() + plan.tram * 2.0, z, 0.08, 7)


def _beside_the_kerb(plan: Street, side: int, rng) -> Iterator[Thing]:
    """Parked cars, parked two-wheelers on the sidewalk, and riders along the road's edge."""
    near, _ = plan.walks(side)
    kerb = plan.kerb[side]
    if plan.parking[side]:
        for z in np.arange(rng.uniform(6, 14), 120, 6.2):
            if rng.random() < 0.5:
                yield _drive(CAR, kerb - side * 1.15, z + 2.2, 0.0 if side > 0 else np.pi)
    for z in rng.uniform(5, 60, int(rng.integers(1, 6))):
        label = int(rng.choice([BICYCLE, MOTORCYCLE], p=[0.6, 0.4]))
        yield _ride(label, near + side * rng.uniform(0.4, 1.0), z, False, rng.random() < 0.6)
    for z in rng.uniform(6, 55, int(rng.integers(1, 4))):
        label = int(rng.choice([BICYCLE, MOTORCYCLE]))
        yield _ride(label, kerb - side * rng.uniform(0.6, 1.0), z, True, rng.random() < 0.4)


def _on_foot(plan: Street, side: int, rng) -> Iterator[Thing]:
    near, far = sorted(plan.walks(side))
    for z in 5 + 85 * rng.uniform(0, 1, int(rng.integers(5, 13))) ** 1.5:
        for _ in range(int(rng.integers(1, 3))):
            x = rng.uniform(near, far)
            yield _stand(figures.person, x, z + rng.uniform(-0.5, 0.5), 0.25, 1.7)


def _furniture(plan: Street, side: int, rng) -> Iterator[Thing]:
    """Lamps, signs, boards, bushes, bollards, traffic lights and the trees of an avenue."""
    kerb = plan.kerb[side]

    def bush(canvas, own, x, z):
        figures.bush(canvas, own, x, z, plan.leaf)

    def tree(canvas, own, x, z):
        figures.tree(canvas, own, x, z, plan.leaf)

    for z in np.arange(rng.uniform(5, 18), 150, rng.uniform(13, 26)):
        yield _stand(street.lamp_post, kerb + side * 0.5, z, 0.08, 7)
    for z in rng.uniform(6, 100, int(rng.integers(4, 9))):
        yield _stand(street.traffic_sign, kerb + side * rng.uniform(0.4, 0.9), z, 0.2, 3)
    for z in rng.uniform(14, 60, int(rng.integers(0, 2))):
        yield _stand(street.board, kerb + side * 1.6, z, 0.8, 3)
    for label, inner, outer in plan.strips[side]:
        if label == TERRAIN and side != plan.tram:
            for z in rng.uniform(6, 70, int(rng.integers(0, 5))):
                yield _stand(bush, rng.uniform(*sorted((inner, outer))), z, 0.8, 1)
    if rng.random() < 0.4:
        for z in np.arange(rng.uniform(4, 10), 60, rng.uniform(1.6, 3)):
            yield _stand(street.bollard, kerb + side * 0.35, z, 0.08, 1)
    lights = [plan.crossing] if plan.crossing else []
    for z in [*lights, *rng.uniform(18, 90, int(rng.integers(0, 3)))]:
        yield _stand(street.traffic_light, kerb + side * rng.uniform(0.4, 0.8), z, 0.15, 3)
    if rng.random() < 0.5:
        _, far = plan.walks(side)
        for z in np.arange(rng.uniform(7, 20), 120, rng.uniform(9, 22)):
            yield _stand(tree, far - side * 0.4, z, 1.2, 4)
