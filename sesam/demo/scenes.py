"""Street scenes drawn by the program, with exact labels.

A pinhole camera looks down a street; objects are placed in meters and painted far to near, so that near ones hide far
ones. The numbers, chosen by eye, and the order of the random draws decide the demo's data and the bundled SAM's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from sesam.demo.canvas import CANVAS_SIZE, SIZE, Camera, Canvas, ground
from sesam.demo.classes import ROAD, SIDEWALK, SKY, VEGETATION
from sesam.demo.objects import (
    paint_car,
    paint_cyclist,
    paint_hedge,
    paint_house,
    paint_person,
    paint_post,
    paint_skyline,
    paint_tree,
)

STREET_END = 90.0  # houses and trees line the street up to here, meters
Placed = tuple[float, Callable[..., None], tuple[float, ...]]  # distance in meters, paint_… and its arguments


@dataclass(frozen=True)
class Scene:
    """One drawn street."""

    image: np.ndarray  # (256, 256, 3) uint8 RGB
    labels: np.ndarray  # (256, 256) uint8 class ids
    instances: np.ndarray  # (256, 256) uint16, an id per painted object, surfaces included


def draw_scene(seed: int | tuple[int, ...], nested: bool = False) -> Scene:
    """Draw the street of one seed; the same seed gives the same bytes.

    nested: with classes inside classes, NESTED_CLASSES: windows, doors and signs on houses, riders on bicycles.
    """
    rng = np.random.default_rng(seed)
    horizon, center = rng.uniform(0.38, 0.52) * CANVAS_SIZE, rng.uniform(0.35, 0.65) * CANVAS_SIZE
    camera = Camera(horizon, center, x=rng.uniform(-2.0, 2.0))
    road, pavement = rng.uniform(2.6, 4.4), rng.uniform(1.8, 3.5)  # half the road's width, the pavement's
    canvas = Canvas(rng, camera, rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 2.0), nested)
    paint_sky(canvas)
    paint_ground(canvas, road, pavement)
    for _ in range(rng.integers(1, 4)):
        paint_skyline(canvas, rng.uniform(100, 140))
    for _, paint, position in sorted(place_objects(rng, road, pavement, nested), key=lambda placed: -placed[0]):
        paint(canvas, *position)
    return photograph(canvas)


def paint_sky(canvas: Canvas) -> None:
    """Fill the canvas with a sky, blue to overcast, that grows paler towards the horizon."""
    rng = canvas.rng
    blue = rng.uniform()
    top = np.array((60, 110, 190)) * blue + np.array((150, 155, 165)) * (1 - blue)
    low = np.array((170, 200, 230)) * blue + np.array((205, 205, 205)) * (1 - blue)
    ramp = np.clip(np.arange(CANVAS_SIZE) / canvas.camera.horizon, 0, 1)[:, None, None]
    canvas.image[:] = top * (1 - ramp) + low * ramp
    large, small = (canvas.noise[scale][:CANVAS_SIZE, :CANVAS_SIZE] for scale in (96, 24))
    clouds = np.clip(large + 0.4 * small - rng.uniform(0.0, 1.5), 0, 1)[..., None]
    canvas.image += clouds * (245 - canvas.image) * 0.7
    canvas.labels[:] = SKY
    canvas.instances[:] = canvas.instance = 1


def paint_ground(canvas: Canvas, road: float, pavement: float) -> None:
    """Grass, two pavements, the road between them with its markings, and at times a house's shadow.

    road: half the road's width, pavement: the width of each pavement; meters.
    """
    rng = canvas.rng
    near, far = 0.9, 400.0  # from below the picture's edge to the horizon
    grass = rng.uniform(0.6, 1.1) * np.array((95, 115, 60))
    canvas.paint(ground(-300, 300, near, far), grass, VEGETATION, ((2, 0.14), (24, 0.1)), new_instance=True)
    asphalt = rng.uniform(65, 125) + rng.uniform(-6, 6, 3)
    # lighter or darker than the road by 20 at least, so that the border is to be seen
    slab = np.clip(asphalt + rng.choice((-1, 1)) * rng.uniform(30, 55) + rng.uniform(-10, 10, 3), 40, 200)
    for side in (-1, 1):
        inner, outer = side * road, side * (road + pavement)
        canvas.paint(ground(inner, outer, near, far), slab, SIDEWALK, ((2, 0.07), (96, 0.05)), new_instance=True)
        for z in np.arange(2.0, 30.0, rng.uniform(0.8, 2.0)):
            start, end = np.round(canvas.camera.project([(inner, 0, z), (outer, 0, z)])).astype(int).tolist()
            cv2.line(canvas.image, start, end, (slab * 0.8).tolist(), 1)
    canvas.paint(ground(-road, road, near, far), asphalt, ROAD, ((2, 0.06), (96, 0.06)), new_instance=True)
    marking = np.full(3, rng.uniform(170, 230))
    dash, offset = rng.uniform(1.5, 4.0), rng.uniform(0, 3)
    for z in np.arange(1.5 + offset, 60, 2 * dash):
        canvas.paint(ground(-0.08, 0.08, z, z + dash), marking)
    for side in (-1, 1):
        kerb = side * (road - 0.05)
        canvas.paint(ground(kerb, kerb + side * 0.12, near, far), slab * 1.15)
    if rng.uniform() < 0.3:  # a zebra crossing
        z = rng.uniform(6, 14)
        for x in np.arange(-road + 0.3, road - 0.5, 1.0):
            canvas.paint(ground(x, x + 0.5, z, z + 2.5), marking)
    if rng.uniform() < 0.5:  # the shadow of a house
        z, depth, reach = rng.uniform(3, 12), rng.uniform(2, 8), rng.uniform(0.4, 1.0) * 2 * road
        foot = -road - pavement if canvas.sun > 0 else road + pavement
        shadow = ground(foot, foot + np.sign(canvas.sun) * reach, z, z + depth)
        canvas.paint(shadow, (20, 20, 35), texture=(), alpha=0.4)


def place_objects(rng: np.random.Generator, road: float, pavement: float, nested: bool) -> list[Placed]:
    """The objects of a street; `road` and `pavement` as in `paint_ground`, `nested` as in `draw_scene`."""
    objects = [placed for side in (-1, 1) for placed in _place_side(rng, side, road, pavement)]
    for _ in range(rng.integers(0, 3)):  # cars that drive
        z = rng.uniform(7, 35)
        objects.append((z, paint_car, (rng.choice((-1, 1)) * road * rng.uniform(0.2, 0.5), z)))
    if rng.uniform() < 0.5:  # someone who crosses the road
        z = rng.uniform(5, 9)
        objects.append((z, paint_person, (rng.uniform(-0.7, 0.7) * road, z)))
    for _ in range(rng.integers(1, 3) if nested else 0):
        z = rng.uniform(4.5, 9)
        objects.append((z, paint_cyclist, (rng.uniform(-0.8, 0.8) * road, z)))
    return objects


def _place_side(rng: np.random.Generator, side: int, road: float, pavement: float) -> Iterator[Placed]:
    """The objects left (-1) or right (1) of the road."""
    front = road + pavement  # where the houses begin
    z = rng.uniform(2.0, 6.0)
    while z < STREET_END:
        depth = rng.uniform(6, 16)
        if rng.uniform() < 0.72:
            # painted as if 3 m beyond its middle: before what is on the pavement along it
            yield z + depth / 2 + 3, paint_house, (side, front, z, depth)
        else:  # a gap with trees
            for _ in range(rng.integers(1, 4)):
                tree = rng.uniform(z, z + depth)
                yield tree, paint_tree, (side * (front + rng.uniform(1, 4)), tree)
        z += depth
    if rng.uniform() < 0.75:  # a row of parked cars
        z = rng.uniform(5, 14)
        for _ in range(rng.integers(1, 4)):
            yield z, paint_car, (side * (road - 1.1 + rng.uniform(-0.1, 0.1)), z)
            z += 4.3 + rng.uniform(0.4, 2.5)
    for _ in range(rng.integers(0, 2)):
        z = rng.uniform(6, 20)
        yield z, paint_tree, (side * (front - rng.uniform(0.3, 0.7)), z)
    for _ in range(rng.integers(0, 2)):
        z = rng.uniform(5, 14)
        yield z, paint_hedge, (side * (front - 0.2), z)
    if rng.uniform() < 0.7:
        z = rng.uniform(4.5, 9)
        yield z, paint_post, (side * (road + rng.uniform(0.3, 0.6)), z)
    for _ in range(rng.integers(0, 3)):  # people in groups of up to three, who partly hide each other
        z, x = rng.uniform(4.2, 8), side * (road + rng.uniform(0.5, pavement - 0.3))
        for k in range(rng.integers(1, 4)):
            yield z + 0.1 * k, paint_person, (x + side * rng.uniform(0.35, 0.6) * k, z + 0.1 * k)


def photograph(canvas: Canvas) -> Scene:
    """The finished canvas at half its size, with exposure, white balance, uneven light and sensor noise."""
    rng = canvas.rng
    image: np.ndarray = canvas.image * rng.uniform(0.9, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3))
    image += 12 * canvas.noise[96][:CANVAS_SIZE, :CANVAS_SIZE, None]  # uneven light
    image = np.asarray(cv2.resize(image.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.float32)
    image += rng.normal(0, rng.uniform(1, 3), image.shape)
    # one of four canvas pixels: a mean of class ids would be another class
    labels, instances = (np.ascontiguousarray(ids[::2, ::2]) for ids in (canvas.labels, canvas.instances))
    return Scene(np.clip(image, 0, 255).astype(np.uint8), labels, instances)
