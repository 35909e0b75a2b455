"""How the objects of a street are painted: skyline, houses, trees, hedges, posts, people and cars.

Positions (x, z) and sizes are meters, colors RGB from 0 to 255, chosen by eye; ranges make no two objects alike.
"""

import numpy as np
from numpy.typing import ArrayLike

from sesam.demo.canvas import FOCAL_LENGTH, Canvas, circle_angles, wall
from sesam.demo.classes import BICYCLE, BUILDING, CAR, DOOR, PERSON, POLE, RIDER, SIGN, VEGETATION, WINDOW


def _colors(rgb: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(rgb), np.uint8).reshape(-1, 3)


FACADE_COLORS = _colors("a55041 beaf96 828287 cdc3b4 785f4b 96a5af d2aa6e")
SIGN_COLORS = _colors("c82828 2850be ebc828 ebebeb 288246")
CAR_COLORS = _colors("c81e1e 1e3c96 e1e1e1 28282d 96969b e6be32 286e50 783c28")


def paint_skyline(canvas: Canvas, z: float) -> None:
    """A wood or a building far away, anywhere across the view."""
    rng = canvas.rng
    x, width, height = rng.uniform(-60, 60), rng.uniform(15, 40), rng.uniform(8, 28)
    color = rng.uniform(110, 175) + rng.uniform(-12, 12, 3)
    if rng.uniform() < 0.5:
        across = x + width * np.linspace(-0.5, 0.5, 14)
        tops = height * 0.5 * (0.6 + 0.4 * rng.uniform(size=14))
        points = [(across[0], 0, z), *zip(across, tops, [z] * 14, strict=True), (across[-1], 0, z)]
        canvas.paint(points, color * (0.6, 0.8, 0.5), VEGETATION, ((2, 0.15), (6, 0.15)), new_instance=True)
    else:
        canvas.paint(wall(x - width / 2, x + width / 2, 0, height, z), color, BUILDING, new_instance=True)


def paint_house(canvas: Canvas, side: int, x: float, z: float, depth: float) -> None:
    """A house from z to z + depth whose facade stands x beside the middle of the street; side: -1 left, 1 right."""
    rng = canvas.rng
    x, height = side * x, rng.uniform(5, 16)
    color = rng.choice(FACADE_COLORS) * rng.uniform(0.7, 1.15) + rng.uniform(-15, 15, 3)
    plaster = ((2, 0.07), (6, 0.05), (96, 0.08))
    # of a near house the gable can be out of view: then the facade shares the id of the object painted before
    canvas.paint(wall(x, x + side * 12, 0, height, z), color * 0.75, BUILDING, plaster, new_instance=True)
    facade = [(x, 0, z), (x, 0, z + depth), (x, height, z + depth), (x, height, z)]
    sunlight = 1.05 if side * canvas.sun > 0 else 0.85
    canvas.paint(facade, color * sunlight, BUILDING, plaster)
    glass = np.array((60, 70, 85)) * rng.uniform(0.6, 1.6)
    storey, pitch = rng.uniform(2.6, 3.4), rng.uniform(1.6, 3.0)  # from window to window, up and sideways
    width, window = pitch * 0.5, WINDOW if canvas.nested else None
    for y in np.arange(1.0, height - 1.5, storey):
        for start in np.arange(z + 0.6, z + depth - 1.2, pitch):
            pane = [(x, y, start), (x, y, start + width), (x, y + 1.5, start + width), (x, y + 1.5, start)]
            canvas.paint(pane, glass * rng.uniform(0.7, 1.3), window, texture=(), new_instance=canvas.nested)
        for start in np.arange(1.0, 11, pitch) if z > 3 else ():  # of a nearer gable hardly anything is in view
            gable_pane = wall(x + side * start, x + side * (start + width), y, y + 1.5, z)
            canvas.paint(gable_pane, glass * 0.8, window, texture=(), new_instance=canvas.nested)
    if canvas.nested:
        inner, start = x - side * 0.02, z + rng.uniform(0.2, 0.8) * depth
        door = [(inner, 0, start), (inner, 0, start + 1.3), (inner, 2.3, start + 1.3), (inner, 2.3, start)]
        canvas.paint(door, rng.uniform(30, 150, 3), DOOR, ((6, 0.05),), new_instance=True)
        board = [
            (inner, 2.6, start - 1.2),
            (inner, 2.6, start + 2.2),
            (inner, 3.5, start + 2.2),
            (inner, 3.5, start - 1.2),
        ]
        canvas.paint(board, rng.choice(SIGN_COLORS), SIGN, ((6, 0.05),), new_instance=True)


def paint_tree(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    if z < 4:  # it would hide much of the street
        return
    trunk, radius = rng.uniform(1.8, 3.0), rng.uniform(1.1, 2.4)
    canvas.paint_shadow(x, z, 2 * radius, 2 * radius, 2.0)
    canvas.instance += 1
    bark = np.array((85, 65, 50)) * rng.uniform(0.7, 1.3)
    canvas.paint(wall(x - 0.14, x + 0.14, 0, trunk + 0.5, z), bark, VEGETATION, ((2, 0.2),))
    leaves = np.array((75, 115, 50)) * rng.uniform(0.6, 1.3) + rng.uniform(-15, 15, 3)
    _paint_leaves(canvas, x, trunk + radius * 0.8, z, radius, leaves)


def paint_hedge(canvas: Canvas, x: float, z: float) -> None:
    canvas.instance += 1
    leaves = np.array((65, 100, 45)) * canvas.rng.uniform(0.6, 1.2)
    canvas.paint_shadow(x, z, 1.4, 1.4, 0.8)
    _paint_leaves(canvas, x, 0.45, z, 0.6, leaves)


def _paint_leaves(canvas: Canvas, x: float, y: float, z: float, radius: float, color: np.ndarray) -> None:
    """A ragged disc around (x, y) and four smaller ones that overlap it, the higher the brighter."""
    rng = canvas.rng
    angles = circle_angles(28)
    discs = [(0, 0, 1.0), *rng.uniform((-0.7, -0.5, 0.4), (0.7, 0.6, 0.75), (4, 3))]  # offset x, y and size, in radii
    for k, (dx, dy, ratio) in enumerate(discs):
        ragged = radius * ratio * (1 + 0.1 * rng.standard_normal(28))
        across, up = x + radius * dx + ragged * np.cos(angles), y + radius * dy + ragged * np.sin(angles)
        shade = 0.8 + 0.3 * dy + (0.1 if k % 2 else 0.0)
        points = np.stack([across, up, np.full(28, z)], axis=1)
        canvas.paint(points, color * shade, VEGETATION, ((2, 0.2), (6, 0.25)))


def paint_post(canvas: Canvas, x: float, z: float) -> None:
    """A traffic sign on its pole, or a street lamp: pole and sign are two objects of two classes."""
    rng = canvas.rng
    has_sign = rng.uniform() < 0.6
    height = rng.uniform(2.4, 3.2) if has_sign else rng.uniform(4, 6)
    half = max(0.1, 6 * z / FOCAL_LENGTH)  # at least six pixels of the photograph wide, or strided networks miss it
    metal = rng.uniform(140, 190) + rng.uniform(-12, 12, 3)
    canvas.paint_shadow(x, z, 0.3, 0.5, 0.8)
    canvas.paint(wall(x - half, x + half, 0, height, z), metal, POLE, ((6, 0.06),), new_instance=True)
    canvas.paint(wall(x + half * 0.3, x + half, 0, height, z), metal * 0.75, texture=())
    if not has_sign:
        arm = -np.sign(x) * rng.uniform(0.8, 1.6)
        canvas.paint(wall(x, x + arm, height - 2 * half, height, z), metal, POLE)
        return
    color, radius, corners = rng.choice(SIGN_COLORS), rng.uniform(0.42, 0.65), rng.choice((3, 4, 8, 24))
    angles = circle_angles(corners) + np.pi / 2 + (np.pi / 4 if corners == 4 else 0)  # a square stands on an edge
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(corners)], axis=1)
    middle = np.array((x, height, z - 0.05))
    canvas.paint(middle + radius * ring, color * rng.uniform(0.75, 1.1), SIGN, ((6, 0.05),), new_instance=True)
    canvas.paint(middle + 0.65 * radius * ring, 255 - 0.5 * color, texture=())


def paint_person(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height, half = rng.uniform(1.5, 1.9), rng.uniform(0.2, 0.28)  # half the shoulders' width
    coat, trousers = rng.uniform(25, 220, 3), rng.uniform(25, 130, 3)
    skin = np.array((215, 165, 135)) * rng.uniform(0.45, 1.1)
    canvas.paint_shadow(x, z, 0.6, 0.7, height)
    hip, neck, stride = 0.48 * height, 0.84 * height, rng.uniform(0.05, 0.22)
    canvas.instance += 1
    for foot in (-stride, stride):
        leg = [(x - 0.13, hip), (x + 0.13, hip), (x + foot + 0.09, 0), (x + foot - 0.09, 0)]
        canvas.paint([(a, b, z) for a, b in leg], trousers, PERSON)
    outline = ((-half, hip - 0.05), (half, hip - 0.05), (half * 1.15, neck - 0.1), (0.1, neck))
    body = [*outline, (-0.1, neck), (-half * 1.15, neck - 0.1)]
    canvas.paint([(x + a, b, z) for a, b in body], coat, PERSON, ((2, 0.08), (24, 0.1)))
    angles = circle_angles(16)
    head = np.stack([x + 0.12 * np.cos(angles), height - 0.14 + 0.15 * np.sin(angles), np.full(16, z)], axis=1)
    canvas.paint(head, skin, PERSON)


def paint_cyclist(canvas: Canvas, x: float, z: float) -> None:
    """A rider on a bicycle, seen from the side."""
    rng = canvas.rng
    frame, coat, trousers = rng.uniform(20, 200, 3), rng.uniform(25, 220, 3), rng.uniform(25, 130, 3)
    angles, heading = circle_angles(20), rng.choice((-1, 1))

    def paint(outline: ArrayLike, color: ArrayLike, label: int, new_instance: bool = False) -> None:
        points = [(x + heading * a, b, z) for a, b in np.asarray(outline)]
        canvas.paint(points, color, label, ((6, 0.05),), new_instance)

    def disc(a: float, b: float, radius: float) -> np.ndarray:
        return np.stack([a + radius * np.cos(angles), b + radius * np.sin(angles)], axis=1)

    canvas.paint_shadow(x, z, 1.7, 0.6, 1.2)
    for hub in (-0.55, 0.55):
        paint(disc(hub, 0.36, 0.36), (35, 35, 38), BICYCLE, hub < 0)
    paint([(-0.6, 0.36), (-0.2, 0.9), (0.5, 1.0), (0.62, 0.36), (0.4, 0.85), (0.0, 0.3)], frame, BICYCLE)
    paint([(-0.3, 1.0), (0.0, 0.95), (0.2, 0.6), (0.1, 0.15), (-0.05, 0.15), (0.0, 0.6)], trousers, RIDER, True)
    paint([(-0.32, 0.92), (0.0, 0.92), (0.3, 1.5), (0.05, 1.6)], coat, RIDER)
    paint([(0.15, 1.45), (0.55, 1.05), (0.6, 1.15), (0.25, 1.55)], coat * 0.8, RIDER)
    paint(disc(0.25, 1.72, 0.15), np.array((215, 165, 135)) * rng.uniform(0.45, 1.1), RIDER)


def paint_car(canvas: Canvas, x: float, z: float) -> None:
    """A car seen from behind, its middle at x and its rear at z."""
    rng = canvas.rng
    color = rng.choice(CAR_COLORS) * rng.uniform(0.75, 1.1)
    half, length, roof = 0.9, 4.2, rng.uniform(1.35, 1.75)  # half the width, the length, the height
    belt = 0.55 * roof  # where body and cabin meet
    canvas.paint_shadow(x, z + length / 2, 2.2, length + 0.8, 0.5)
    canvas.instance += 1
    glass, rubber = np.array((45, 55, 65)) * rng.uniform(0.6, 1.7), np.array((28, 28, 30))
    sheen = ((6, 0.03), (24, 0.08))
    # the side that the camera sees, and where the cabin, which narrows upwards, ends on it
    flank, inner = (x + ratio * half if x < canvas.camera.x else x - ratio * half for ratio in (1, 0.78))
    flank_side = [(flank, 0.25, z), (flank, 0.25, z + length), (flank, belt, z + length), (flank, belt, z)]
    canvas.paint(flank_side, color * 0.75, CAR, sheen)
    cabin = [(flank, belt, z + 0.1), (flank, belt, z + 3.2), (inner, roof, z + 2.4), (inner, roof, z + 0.5)]
    canvas.paint(cabin, color * 0.7, CAR, sheen)
    bottom, top = belt + 0.05, roof - 0.1
    window = [(flank, bottom, z + 0.5), (flank, bottom, z + 2.9), (inner, top, z + 2.3), (inner, top, z + 0.7)]
    canvas.paint(window, glass, texture=())
    angles = circle_angles(18)
    for hub in (z + 0.8, z + 3.3):
        wheel = np.stack([np.full(18, flank), 0.33 + 0.33 * np.sin(angles), hub + 0.33 * np.cos(angles)], axis=1)
        canvas.paint(wheel, rubber, CAR, texture=())

    for tyre in (x - half + 0.15, x + half - 0.15):
        canvas.paint(wall(tyre - 0.12, tyre + 0.12, 0, 0.4, z), rubber, CAR, texture=())
    canvas.paint(wall(x - half, x + half, 0.25, belt, z), color, CAR, sheen)
    cabin = [(x + half * side, roof, z + 0.5) for side in (-0.78, 0.78)]
    cabin += [(x + half * side, belt, z + 0.1) for side in (1, -1)]
    canvas.paint(cabin, color * 0.95, CAR, sheen)
    pane = np.array(cabin)  # the cabin less a frame
    pane[:, 0] = x + (pane[:, 0] - x) * 0.86
    pane[:, 1] += (-0.08, -0.08, 0.04, 0.04)
    canvas.paint(pane, glass, texture=())
    for lamp in (x - half + 0.18, x + half - 0.18):
        canvas.paint(wall(lamp - 0.14, lamp + 0.14, belt - 0.25, belt - 0.1, z), (190, 40, 35), texture=())
    canvas.paint(wall(x - 0.28, x + 0.28, 0.42, 0.55, z), (225, 225, 215), texture=())  # number plate
