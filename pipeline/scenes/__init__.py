"""Street scenes drawn by program: photograph-like images with the exact class of every pixel.

A scene is a street seen from a car: ground first, then what lines the street, then what stands or drives in
it, from far to near. Images and labels share every mask; light, texture, haze, lens and sensor touch the
image only. Colours overlap between classes on purpose, so that shape, texture and place must be learnt.
"""

from itertools import pairwise

import cv2
import numpy as np

from fullres.pipeline.scenes import figures, street
from fullres.pipeline.scenes.canvas import (
    LEAF_FAR,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    Camera,
    Canvas,
    Light,
    noise,
    photograph,
)
from fullres.pipeline.scenes.plan import LANE, Street, Thing, far_to_near, furnish

FAR = 170.0  # metres to the end of the street


def render_scene(seed: int, height: int = 1024, width: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Draw the street scene number `seed`; other sizes show the same street.

    Returns the image, uint8 (height, width, 3) RGB, and the labels, uint8 (height, width) of Cityscapes
    trainIds 0..18. The same arguments give the same bytes. Raises ValueError if a side is less than 16.
    """
    if min(height, width) < 16:
        raise ValueError(f"a scene needs at least 16 x 16 pixels, not {width} x {height}")
    rng = np.random.default_rng(seed)
    canvas = Canvas(height, width, _camera(rng, height, width), _light(rng))
    plan = Street(rng)
    things = furnish(plan, rng)
    _sky(canvas, _stream(rng))
    _ground(canvas, _stream(rng), plan, things)
    _backdrop(canvas, rng, plan)
    _roadside(canvas, rng, plan)
    for thing, own in zip(far_to_near(things), rng.spawn(len(things)), strict=True):
        thing.draw(canvas, own)
    return photograph(canvas, rng), canvas.labels


def _stream(rng: np.random.Generator) -> np.random.Generator:
    """A stream of its own for what draws more numbers the larger it is: what follows stays the same."""
    return rng.spawn(1)[0]


def _camera(rng, height: int, width: int) -> Camera:
    return Camera(
        focal=height * rng.uniform(1.1, 1.6),
        centre_x=width / 2 + height * rng.uniform(-0.2, 0.2),
        horizon=height * rng.uniform(0.4, 0.52),
        height=rng.uniform(1.6, 2.7),
        bend=rng.uniform(-3e-4, 3e-4),
    )


def _light(rng) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
    flat = np.cos(elevation)
    sun = np.array([np.cos(azimuth) * flat, np.sin(elevation), np.sin(azimuth) * flat])
    haze = rng.uniform(130, 225) * rng.choice([(1, 1, 1), (0.92, 0.98, 1.08), (1.08, 1.0, 0.88)])
    return Light(sun, rng.uniform(0.5, 0.8), np.minimum(haze, 255), rng.uniform(150, 700))


def _sky(canvas: Canvas, rng) -> None:
    height, width = canvas.labels.shape
    zenith = rng.uniform(70, 220) * rng.choice([(0.55, 0.78, 1.15), (1, 1, 1.02), (0.85, 0.92, 1.05)])
    depth = np.linspace(0, 1, max(2, int(canvas.camera.horizon) + 1))[:, None] ** rng.uniform(0.6, 2.0)
    rows = zenith * (1 - depth) + canvas.light.haze * depth
    octaves = ((5, 1.0), (14, 0.6), (40, 0.3))
    # Clouds are seen from below at a slant, so they are three times wider than high.
    cloud = sum(noise(rng, 3 * len(rows), width, height / cell)[::3] * part for cell, part in octaves)
    cover = np.clip(0.6 * cloud + rng.uniform(-0.8, 0.5), 0, 1)[..., None].astype(np.float32)
    sky = rows[:, None].astype(np.float32) * (1 - cover) + np.float32(rng.uniform(140, 250)) * cover
    canvas.image[: len(rows)] = np.clip(sky, 0, 255)
    canvas.labels[: len(rows)] = SKY


def _strip(canvas: Canvas, left: float, right: float, colour, label: int, start=0.0, end=FAR) -> None:
    """A strip of ground along the road; it is shaded with the rest of the ground later."""
    z = np.geomspace(max(start, 1.0), end, 24)
    edge = [np.column_stack([np.full(24, x), np.zeros(24), z]) for x in (left, right)]
    canvas.fill([canvas.camera.project(np.concatenate([edge[0], edge[1][::-1]]))], colour, label, 0)


def _ground(canvas: Canvas, rng, plan: Street, things: list[Thing]) -> None:
    height = canvas.labels.shape[0]
    grey = rng.uniform(60, 130)
    paving = (grey + rng.uniform(-25, 60)) * rng.choice([(1, 1, 1), (1.08, 0.98, 0.9), (1.1, 0.9, 0.82)])
    grass = rng.choice([(75, 100, 45), (120, 115, 60), (110, 90, 65), (85, 95, 60)]) * rng.uniform(0.7, 1.4)
    top = min(height - 1, max(0, int(canvas.camera.horizon)))
    canvas.labels[top:] = TERRAIN
    canvas.image[top:] = np.clip(grass, 0, 255)
    for side in (-1, 1):
        colour = grass if plan.verge[side] == TERRAIN else paving
        _strip(canvas, plan.line[side], side * 400.0, colour, plan.verge[side])
        for label, near, far in plan.strips[side]:
            _strip(canvas, near, far, grass * 0.95 if label == TERRAIN else paving, label)
    _strip(canvas, plan.kerb[-1], plan.kerb[1], np.full(3, grey) * (1, 1, 1.02), ROAD)
    for side in (-1, 1):
        stone = np.full(3, grey * rng.choice([0.7, 1.45]))
        _strip(canvas, plan.kerb[side], plan.kerb[side] + side * 0.18, stone, SIDEWALK)
    if plan.tram:
        for rail in (-0.75, 0.75):
            _strip(canvas, plan.track() + rail - 0.06, plan.track() + rail + 0.06, (70, 66, 62), TERRAIN)
    _markings(canvas, rng, plan)
    _shade_ground(canvas, rng, top, things)


def _markings(canvas: Canvas, rng, plan: Street) -> None:
    paint = np.full(3, rng.uniform(170, 245))
    lines = sorted({round(x + dx, 2) for x, _ in plan.lanes for dx in (-LANE / 2, LANE / 2)})
    for x in lines[1:-1]:
        for start in np.arange(rng.uniform(1, 6), 90, 8.0):
            _strip(canvas, x - 0.08, x + 0.08, paint, ROAD, start, start + 4)
    for side, x in ((-1, lines[0]), (1, lines[-1])):
        if plan.parking[side]:
            _strip(canvas, x - 0.06, x + 0.06, paint, ROAD)
    if plan.crossing:
        for x in np.arange(plan.kerb[-1] + 0.4, plan.kerb[1] - 0.6, 1.1):
            _strip(canvas, x, x + 0.55, paint, ROAD, plan.crossing, plan.crossing + 3.5)


def _shade_ground(canvas: Canvas, rng, top: int, things: list[Thing]) -> None:
    """Give the ground its texture in perspective, its shadows and its haze."""
    height, width = canvas.labels.shape
    camera, light = canvas.camera, canvas.light
    below = np.arange(top, height, dtype=np.float32) + 0.5 - camera.horizon
    depth = np.minimum(camera.focal * camera.height / np.maximum(below, 0.5), 1000).astype(np.float32)
    across = (np.arange(width, dtype=np.float32) - camera.centre_x) / camera.focal
    x = across[None] * depth[:, None]
    z = np.repeat(depth[:, None], width, axis=1)

    octaves = ((1, 0.6), (4, 0.5), (30, 0.6))
    tile = np.asarray(sum(noise(rng, 512, 512, cell) * part for cell, part in octaves))
    tile = np.block([[tile, tile[:, ::-1]], [tile[::-1], tile[::-1, ::-1]]])  # mirrored, so it repeats unseen
    place = (x + rng.uniform(0, 20)) * 40 % 1024, z * 20 % 1024
    grain = cv2.remap(tile, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    labels = canvas.labels[top:]
    strength = np.zeros(256, np.float32)
    strength[ROAD], strength[SIDEWALK] = rng.uniform(0.04, 0.1), rng.uniform(0.03, 0.08)
    strength[TERRAIN] = rng.uniform(0.2, 0.32)
    fade = np.clip(1.3 - depth / 60, 0.35, 1)[:, None]
    shade = 1 + strength[labels] * grain * fade
    slab = rng.uniform(0.5, 1.0)
    joint = ((x % slab) * camera.focal < 0.03 * camera.focal) | ((z % slab) < 0.04)
    shade[(labels == SIDEWALK) & joint & (z < 25)] *= 0.75

    shadow = np.zeros((height, width), np.uint8)
    for thing in things:
        _cast(shadow, thing, camera, light)
    soft = cv2.GaussianBlur(shadow[top:], (0, 0), max(0.6, height / 250)).astype(np.float32) / 255
    shade *= light.on((0, 1, 0)) * (1 - soft * rng.uniform(0.35, 0.65))

    clear = np.exp(-depth / light.visibility)[:, None, None]
    ground = canvas.image[top:] * shade[..., None]
    canvas.image[top:] = np.clip(ground * clear + light.haze.astype(np.float32) * (1 - clear), 0, 255)
    canvas.surface[top:] = 0


def _cast(shadow: np.ndarray, thing: Thing, camera: Camera, light: Light) -> None:
    """The shadow below a thing and the one that the sun throws."""
    w, d = thing.half_width * 1.08, thing.half_length * 1.05
    foot = np.add((thing.x, 0, thing.z), [(-w, 0, -d), (w, 0, -d), (w, 0, d), (-w, 0, d)])
    length = min(thing.height / max(np.tan(np.arcsin(light.sun[1])), 0.4), 8.0)
    thrown = foot - length * np.array([light.sun[0], 0, light.sun[2]])
    for points, dark in ((np.concatenate([foot, thrown]), 150), (foot, 255)):
        corners = np.clip(camera.project(points), -20000, 20000)
        cv2.fillConvexPoly(shadow, cv2.convexHull(corners.astype(np.int32)), dark)


def _backdrop(canvas: Canvas, rng, plan: Street) -> None:
    """Houses and trees that close the view at the end of the street and behind what lines it."""
    for z in (FAR, FAR * 0.85):
        x = -2.2 * z
        while x < 2.2 * z:
            wide, high = rng.uniform(8, 25), rng.uniform(5, 22)
            if rng.random() < 0.5:
                paint = rng.uniform(70, 210) * np.array([1.0, 0.96, 0.92])
                street.front(canvas, _stream(rng), x, x + wide, high, z, paint)
            else:
                centre = canvas.camera.project((x + wide / 2, high * 0.35, z))
                radii = np.array([wide * 0.6, high * 0.5]) * canvas.camera.scale(z)
                colour = plan.leaf * rng.uniform(0.8, 1.2)
                figures.leaves(canvas, _stream(rng), centre, radii, z, colour, 10)
                foot = [(x, 0, z), (x + wide, 0, z), (x + wide, 2, z), (x, 2, z)]
                canvas.quad(foot, plan.leaf * 0.6, VEGETATION, LEAF_FAR)
            x += wide * rng.uniform(0.7, 1.0)


def _roadside(canvas: Canvas, rng, plan: Street) -> None:
    """The line of houses, walls, fences and hedges on both sides."""
    for side in (-1, 1):
        cuts = [rng.uniform(1.3, 6.0)]
        while cuts[-1] < FAR * 0.8:
            cuts.append(cuts[-1] + rng.uniform(8, 24))
        x = plan.line[side] + side * 0.3
        for start, end in reversed(list(pairwise(cuts))):
            kinds = ["building", "wall", "fence", "hedge", "trees"]
            kind = rng.choice(kinds, p=[0.36, 0.26, 0.22, 0.06, 0.1])
            if kind == "building":
                street.building(canvas, _stream(rng), side, x, start, end)
                continue
            behind = x + side * rng.uniform(5, 9)
            if rng.random() < 0.45:
                street.building(canvas, _stream(rng), side, behind, start, end)
            for z in sorted(rng.uniform(start + 3, end + 3, int(rng.integers(1, 4))), reverse=True):
                figures.tree(canvas, _stream(rng), x + side * rng.uniform(1.5, 4.5), z, plan.leaf)
            if kind == "wall":
                street.wall(canvas, _stream(rng), side, x, start, end)
            elif kind == "fence":
                street.fence(canvas, _stream(rng), side, x, start, end)
            elif kind == "hedge":
                street.hedge(canvas, _stream(rng), side, x, start, end, plan.leaf)
