"""Street scenes drawn by the program itself, with exact labels.

A pinhole camera looks down a street; every object is placed in metres and
painted far to near, so scale follows distance and near objects occlude far
ones. The demo data set and the embedded SAM's training set are both drawn here
(with different seeds).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "pole", "sign", "person", "car")
PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (107, 142, 35),
    (70, 130, 180),
    (190, 190, 150),
    (220, 220, 0),
    (220, 20, 60),
    (0, 0, 142),
)
SIZE = 256
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, POLE, SIGN, PERSON, CAR = range(len(CLASSES))

_CANVAS = 2 * SIZE  # drawn at twice the size, so that the photograph is antialiased
_FOCAL = 0.72 * _CANVAS  # pixels
_EYE = 2.0  # camera height, metres
_FAR = 90.0  # metres


@dataclass(frozen=True)
class Scene:
    """One drawn street.

    image: (256, 256, 3) uint8 RGB. labels: (256, 256) uint8 class ids.
    instances: (256, 256) uint16, one id per painted object, surfaces included.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def draw_scene(seed: int | tuple[int, ...]) -> Scene:
    """Draw the street of one seed; the same seed gives the same bytes."""
    street = _Street(np.random.default_rng(seed))
    street.draw_sky()
    street.draw_ground()
    street.draw_objects()
    return street.photograph()


class _Street:
    """A canvas with a camera. World axes: x right, y up from the ground, z ahead, metres."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = np.zeros((_CANVAS, _CANVAS, 3), np.float32)
        self.labels = np.zeros((_CANVAS, _CANVAS), np.uint8)
        self.instances = np.zeros((_CANVAS, _CANVAS), np.uint16)
        self.count = 0
        self.horizon = rng.uniform(0.38, 0.52) * _CANVAS
        self.centre = rng.uniform(0.35, 0.65) * _CANVAS
        self.lane = rng.uniform(-2.0, 2.0)  # the camera's place across the street, metres
        self.road = rng.uniform(2.6, 4.4)  # half width
        self.pavement = rng.uniform(1.8, 3.5)
        self.sun = rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 2.0)  # metres of shadow per metre of height
        self.noise = {scale: _noise(rng, scale) for scale in (2, 6, 24, 96)}

    # Camera and brush

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) in metres to canvas points (N, 2) in pixels."""
        x, y, z = np.asarray(points, np.float64).T
        z = np.maximum(z, 0.8)
        return np.stack([self.centre + _FOCAL * (x - self.lane) / z, self.horizon + _FOCAL * (_EYE - y) / z], axis=1)

    def paint(
        self,
        outline: np.ndarray,
        colour: np.ndarray,
        label: int | None = None,
        texture: tuple[tuple[int, float], ...] = ((2, 0.06),),
        new: bool = True,
        alpha: float = 1.0,
    ) -> None:
        """Fill a canvas polygon (N, 2). Without a label only the photograph changes."""
        outline = np.clip(np.round(outline), -8 * _CANVAS, 8 * _CANVAS).astype(np.int32)
        (left, top), (right, bottom) = outline.min(0), outline.max(0) + 1
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, _CANVAS), min(bottom, _CANVAS)
        if left >= right or top >= bottom:
            return
        inside = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(inside, [outline - (left, top)], 1)
        inside = inside.astype(bool)
        window = np.s_[top:bottom, left:right]
        shade = np.ones(inside.shape, np.float32)
        shift = self.rng.integers(0, _CANVAS, 2)
        for scale, strength in texture:
            row, column = (top + shift[0]) % _CANVAS, (left + shift[1]) % _CANVAS
            shade += strength * self.noise[scale][row : row + inside.shape[0], column : column + inside.shape[1]]
        painted = np.asarray(colour, np.float32) * shade[inside][:, None]
        if alpha < 1:
            painted = alpha * painted + (1 - alpha) * self.image[window][inside]
        self.image[window][inside] = painted
        if label is not None:
            if new:
                self.count += 1
            self.labels[window][inside] = label
            self.instances[window][inside] = self.count

    def paint_world(self, points: np.ndarray, *args, **kwargs) -> None:
        self.paint(self.project(points), *args, **kwargs)

    def darken(self, x: float, z: float, width: float, depth: float, height: float) -> None:
        """A soft shadow on the ground of something `height` metres tall."""
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        reach = self.sun * height * 0.5
        ground = np.stack(
            [
                x + reach / 2 + (width / 2 + abs(reach) / 2) * np.cos(angles),
                np.zeros_like(angles),
                z + depth / 2 * np.sin(angles),
            ],
            axis=1,
        )
        if z - depth / 2 < 1.2:
            return
        self.paint_world(ground, (20, 20, 30), texture=(), alpha=0.45)

    # Surfaces

    def draw_sky(self) -> None:
        rng = self.rng
        mood = rng.uniform()
        top = np.array((60, 110, 190)) * mood + np.array((150, 155, 165)) * (1 - mood)
        low = np.array((170, 200, 230)) * mood + np.array((205, 205, 205)) * (1 - mood)
        ramp = np.clip(np.arange(_CANVAS) / self.horizon, 0, 1)[:, None, None]
        self.image[:] = top * (1 - ramp) + low * ramp
        clouds = np.clip(
            self.noise[96][:_CANVAS, :_CANVAS] + 0.4 * self.noise[24][:_CANVAS, :_CANVAS] - rng.uniform(0.0, 1.5), 0, 1
        )[..., None]
        self.image += clouds * (245 - self.image) * 0.7
        self.labels[:] = SKY
        self.count = 1
        self.instances[:] = 1

    def draw_ground(self) -> None:
        rng = self.rng
        near, far = 0.9, 400.0
        grass = rng.uniform(0.6, 1.1) * np.array((95, 115, 60))
        self.paint_world(_ground(-300, 300, near, far), grass, VEGETATION, ((2, 0.14), (24, 0.1)))
        asphalt = rng.uniform(65, 125) + rng.uniform(-6, 6, 3)
        slab = np.clip(asphalt + rng.choice((-1, 1)) * rng.uniform(30, 55) + rng.uniform(-10, 10, 3), 40, 200)
        for side in (-1, 1):
            inner, outer = side * self.road, side * (self.road + self.pavement)
            strip = _ground(inner, outer, near, far)
            self.paint_world(strip, slab, SIDEWALK, ((2, 0.07), (96, 0.05)))
            for z in np.arange(2.0, 30.0, rng.uniform(0.8, 2.0)):
                joint = [(inner, 0, z), (outer, 0, z)]
                a, b = np.round(self.project(np.array(joint))).astype(int).tolist()
                cv2.line(self.image, a, b, (slab * 0.8).tolist(), 1)
        self.paint_world(_ground(-self.road, self.road, near, far), asphalt, ROAD, ((2, 0.06), (96, 0.06)))
        mark = np.full(3, rng.uniform(170, 230))
        dash, offset = rng.uniform(1.5, 4.0), rng.uniform(0, 3)
        for z in np.arange(1.5 + offset, 60, 2 * dash):
            self.paint_world(_ground(-0.08, 0.08, z, z + dash), mark)
        for side in (-1, 1):
            edge = side * (self.road - 0.05)
            self.paint_world(_ground(edge, edge + side * 0.12, near, far), slab * 1.15)
        if rng.uniform() < 0.3:
            z = rng.uniform(6, 14)
            for x in np.arange(-self.road + 0.3, self.road - 0.5, 1.0):
                self.paint_world(_ground(x, x + 0.5, z, z + 2.5), mark)
        if rng.uniform() < 0.5:
            z = rng.uniform(3, 12)
            depth, reach = rng.uniform(2, 8), rng.uniform(0.4, 1.0) * 2 * self.road
            edge = -self.road - self.pavement if self.sun > 0 else self.road + self.pavement
            self.paint_world(
                _ground(edge, edge + np.sign(self.sun) * reach, z, z + depth), (20, 20, 35), texture=(), alpha=0.4
            )

    # Objects, far to near

    def draw_objects(self) -> None:
        rng = self.rng
        for _ in range(rng.integers(1, 4)):
            self._skyline(rng.uniform(100, 140))
        jobs = []
        front = self.road + self.pavement
        for side in (-1, 1):
            z = rng.uniform(2.0, 6.0)
            while z < _FAR:
                depth = rng.uniform(6, 16)
                if rng.uniform() < 0.72:
                    jobs.append((z + depth / 2 + 3, self._house, (side, front, z, depth)))
                else:
                    for _ in range(rng.integers(1, 4)):
                        where = rng.uniform(z, z + depth)
                        jobs.append((where, self._tree, (side * (front + rng.uniform(1, 4)), where)))
                z += depth
            if rng.uniform() < 0.75:
                z = rng.uniform(5, 14)
                for _ in range(rng.integers(1, 4)):
                    jobs.append((z, self._car, (side * (self.road - 1.1 + rng.uniform(-0.1, 0.1)), z)))
                    z += 4.3 + rng.uniform(0.4, 2.5)
            for _ in range(rng.integers(0, 2)):
                z = rng.uniform(6, 20)
                jobs.append((z, self._tree, (side * (front - rng.uniform(0.3, 0.7)), z)))
            for _ in range(rng.integers(0, 2)):
                z = rng.uniform(5, 14)
                jobs.append((z, self._hedge, (side * (front - 0.2), z)))
            if rng.uniform() < 0.7:
                z = rng.uniform(4.5, 9)
                jobs.append((z, self._post, (side * (self.road + rng.uniform(0.3, 0.6)), z)))
            for _ in range(rng.integers(0, 3)):
                z, x = rng.uniform(4.2, 8), side * (self.road + rng.uniform(0.5, self.pavement - 0.3))
                for k in range(rng.integers(1, 4)):
                    jobs.append((z + 0.1 * k, self._person, (x + side * rng.uniform(0.35, 0.6) * k, z + 0.1 * k)))
        for _ in range(rng.integers(0, 3)):
            z = rng.uniform(7, 35)
            jobs.append((z, self._car, (rng.choice((-1, 1)) * self.road * rng.uniform(0.2, 0.5), z)))
        if rng.uniform() < 0.5:
            z = rng.uniform(5, 9)
            jobs.append((z, self._person, (rng.uniform(-0.7, 0.7) * self.road, z)))
        for _, draw, arguments in sorted(jobs, key=lambda job: -job[0]):
            draw(*arguments)

    def _skyline(self, z: float) -> None:
        rng = self.rng
        x, width, height = rng.uniform(-60, 60), rng.uniform(15, 40), rng.uniform(8, 28)
        colour = rng.uniform(110, 175) + rng.uniform(-12, 12, 3)
        if rng.uniform() < 0.5:
            bumps = x + width * np.linspace(-0.5, 0.5, 14)
            tops = height * 0.5 * (0.6 + 0.4 * rng.uniform(size=14))
            points = [(bumps[0], 0, z), *zip(bumps, tops, [z] * 14, strict=True), (bumps[-1], 0, z)]
            self.paint_world(np.array(points), colour * (0.6, 0.8, 0.5), VEGETATION, ((2, 0.15), (6, 0.15)))
        else:
            self.paint_world(_wall(x - width / 2, x + width / 2, 0, height, z), colour, BUILDING)

    def _house(self, side: float, x: float, z: float, depth: float) -> None:
        rng = self.rng
        x, height = side * x, rng.uniform(5, 16)
        walls = [
            (165, 80, 65),
            (190, 175, 150),
            (130, 130, 135),
            (205, 195, 180),
            (120, 95, 75),
            (150, 165, 175),
            (210, 170, 110),
        ]
        colour = np.array(walls[rng.integers(len(walls))]) * rng.uniform(0.7, 1.15) + rng.uniform(-15, 15, 3)
        gable = _wall(x, x + side * 12, 0, height, z)
        facade = np.array([(x, 0, z), (x, 0, z + depth), (x, height, z + depth), (x, height, z)])
        grain = ((2, 0.07), (6, 0.05), (96, 0.08))
        self.paint_world(gable, colour * 0.75, BUILDING, grain)
        lit = 1.05 if side * self.sun > 0 else 0.85
        self.paint_world(facade, colour * lit, BUILDING, grain, new=False)
        glass = np.array((60, 70, 85)) * rng.uniform(0.6, 1.6)
        storey, pitch = rng.uniform(2.6, 3.4), rng.uniform(1.6, 3.0)
        for y in np.arange(1.0, height - 1.5, storey):
            for w in np.arange(z + 0.6, z + depth - 1.2, pitch):
                pane = np.array([(x, y, w), (x, y, w + pitch * 0.5), (x, y + 1.5, w + pitch * 0.5), (x, y + 1.5, w)])
                self.paint_world(pane, glass * rng.uniform(0.7, 1.3), texture=())
            for w in np.arange(1.0, 11, pitch):
                if z > 3:
                    pane = _wall(x + side * w, x + side * (w + pitch * 0.5), y, y + 1.5, z)
                    self.paint_world(pane, glass * 0.8, texture=())

    def _crown(self, x: float, y: float, z: float, radius: float, colour: np.ndarray) -> None:
        rng = self.rng
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        for k, (dx, dy, share) in enumerate([(0, 0, 1.0), *rng.uniform((-0.7, -0.5, 0.4), (0.7, 0.6, 0.75), (4, 3))]):
            r = radius * share * (1 + 0.1 * rng.standard_normal(28))
            points = np.stack(
                [x + radius * dx + r * np.cos(angles), y + radius * dy + r * np.sin(angles), np.full(28, z)], axis=1
            )
            shade = 0.8 + 0.3 * dy + (0.1 if k % 2 else 0.0)
            self.paint_world(points, colour * shade, VEGETATION, ((2, 0.2), (6, 0.25)), new=False)

    def _tree(self, x: float, z: float) -> None:
        rng = self.rng
        if z < 4:
            return
        trunk, radius = rng.uniform(1.8, 3.0), rng.uniform(1.1, 2.4)
        self.darken(x, z, 2 * radius, 2 * radius, 2.0)
        self.count += 1
        bark = np.array((85, 65, 50)) * rng.uniform(0.7, 1.3)
        self.paint_world(_wall(x - 0.14, x + 0.14, 0, trunk + 0.5, z), bark, VEGETATION, ((2, 0.2),), new=False)
        leaves = np.array((75, 115, 50)) * rng.uniform(0.6, 1.3) + rng.uniform(-15, 15, 3)
        self._crown(x, trunk + radius * 0.8, z, radius, leaves)

    def _hedge(self, x: float, z: float) -> None:
        self.count += 1
        leaves = np.array((65, 100, 45)) * self.rng.uniform(0.6, 1.2)
        self.darken(x, z, 1.4, 1.4, 0.8)
        self._crown(x, 0.45, z, 0.6, leaves)

    def _post(self, x: float, z: float) -> None:
        rng = self.rng
        board = rng.uniform() < 0.6
        height = rng.uniform(2.4, 3.2) if board else rng.uniform(4, 6)
        half = max(0.1, 6 * z / _FOCAL)  # at least six pixels of the photograph wide
        metal = rng.uniform(140, 190) + rng.uniform(-12, 12, 3)
        self.darken(x, z, 0.3, 0.5, 0.8)
        self.paint_world(_wall(x - half, x + half, 0, height, z), metal, POLE, ((6, 0.06),))
        self.paint_world(_wall(x + half * 0.3, x + half, 0, height, z), metal * 0.75, texture=())
        if not board:
            arm = -np.sign(x) * rng.uniform(0.8, 1.6)
            self.paint_world(_wall(x, x + arm, height - 2 * half, height, z), metal, POLE, new=False)
            return
        paint = np.array(
            [(200, 40, 40), (40, 80, 190), (235, 200, 40), (235, 235, 235), (40, 130, 70)][rng.integers(5)]
        )
        radius, sides = rng.uniform(0.42, 0.65), rng.choice((3, 4, 8, 24))
        angles = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / 2 + (np.pi / 4 if sides == 4 else 0)
        ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1)
        middle = np.array((x, height, z - 0.05))
        self.paint_world(middle + radius * ring, paint * rng.uniform(0.75, 1.1), SIGN, ((6, 0.05),))
        self.paint_world(middle + 0.65 * radius * ring, 255 - 0.5 * paint, texture=())

    def _person(self, x: float, z: float) -> None:
        rng = self.rng
        if z < 4:
            return
        tall, half = rng.uniform(1.5, 1.9), rng.uniform(0.2, 0.28)
        coat, trousers = rng.uniform(25, 220, 3), rng.uniform(25, 130, 3)
        skin = np.array((215, 165, 135)) * rng.uniform(0.45, 1.1)
        self.darken(x, z, 0.6, 0.7, tall)
        hip, neck, stride = 0.48 * tall, 0.84 * tall, rng.uniform(0.05, 0.22)
        self.count += 1
        for foot in (-stride, stride):
            leg = [(x - 0.13, hip), (x + 0.13, hip), (x + foot + 0.09, 0), (x + foot - 0.09, 0)]
            self.paint_world(np.array([(a, b, z) for a, b in leg]), trousers, PERSON, new=False)
        body = [
            (x - half, hip - 0.05),
            (x + half, hip - 0.05),
            (x + half * 1.15, neck - 0.1),
            (x + 0.1, neck),
            (x - 0.1, neck),
            (x - half * 1.15, neck - 0.1),
        ]
        self.paint_world(np.array([(a, b, z) for a, b in body]), coat, PERSON, ((2, 0.08), (24, 0.1)), new=False)
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        head = np.stack([x + 0.12 * np.cos(angles), tall - 0.14 + 0.15 * np.sin(angles), np.full(16, z)], axis=1)
        self.paint_world(head, skin, PERSON, new=False)

    def _car(self, x: float, z: float) -> None:
        rng = self.rng
        if z < 3.5:
            return
        colours = [
            (200, 30, 30),
            (30, 60, 150),
            (225, 225, 225),
            (40, 40, 45),
            (150, 150, 155),
            (230, 190, 50),
            (40, 110, 80),
            (120, 60, 40),
        ]
        colour = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.75, 1.1)
        w, length, roof = 0.9, 4.2, rng.uniform(1.35, 1.75)
        belt = 0.55 * roof
        self.darken(x, z + length / 2, 2.2, length + 0.8, 0.5)
        self.count += 1
        flank = x + w if x < self.lane else x - w  # the side that the camera sees
        inner = x + 0.78 * w if x < self.lane else x - 0.78 * w
        glass, dark = np.array((45, 55, 65)) * rng.uniform(0.6, 1.7), np.array((28, 28, 30))
        sheen = ((6, 0.03), (24, 0.08))
        side = [(flank, 0.25, z), (flank, 0.25, z + length), (flank, belt, z + length), (flank, belt, z)]
        self.paint_world(np.array(side), colour * 0.75, CAR, sheen, new=False)
        cabin = [(flank, belt, z + 0.1), (flank, belt, z + 3.2), (inner, roof, z + 2.4), (inner, roof, z + 0.5)]
        self.paint_world(np.array(cabin), colour * 0.7, CAR, sheen, new=False)
        window = [
            (flank, belt + 0.05, z + 0.5),
            (flank, belt + 0.05, z + 2.9),
            (inner, roof - 0.1, z + 2.3),
            (inner, roof - 0.1, z + 0.7),
        ]
        self.paint_world(np.array(window), glass, texture=())
        angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        for hub in (z + 0.8, z + 3.3):
            wheel = np.stack([np.full(18, flank), 0.33 + 0.33 * np.sin(angles), hub + 0.33 * np.cos(angles)], axis=1)
            self.paint_world(wheel, dark, CAR, texture=(), new=False)
        for tyre in (x - w + 0.15, x + w - 0.15):
            self.paint_world(_wall(tyre - 0.12, tyre + 0.12, 0, 0.4, z), dark, CAR, texture=(), new=False)
        top = [
            (x - w * 0.78, roof, z + 0.5),
            (x + w * 0.78, roof, z + 0.5),
            (x + w, belt, z + 0.1),
            (x - w, belt, z + 0.1),
        ]
        self.paint_world(_wall(x - w, x + w, 0.25, belt, z), colour, CAR, sheen, new=False)
        self.paint_world(np.array(top), colour * 0.95, CAR, sheen, new=False)
        pane = np.array(top)
        pane[:, 0] = x + (pane[:, 0] - x) * 0.86
        pane[:2, 1] -= 0.08
        pane[2:, 1] += 0.04
        self.paint_world(pane, glass, texture=())
        for lamp in (x - w + 0.18, x + w - 0.18):
            self.paint_world(_wall(lamp - 0.14, lamp + 0.14, belt - 0.25, belt - 0.1, z), (190, 40, 35), texture=())
        self.paint_world(_wall(x - 0.28, x + 0.28, 0.42, 0.55, z), (225, 225, 215), texture=())

    # Film

    def photograph(self) -> Scene:
        rng = self.rng
        image = self.image * rng.uniform(0.9, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3))
        image += 12 * self.noise[96][:_CANVAS, :_CANVAS, None]  # uneven light
        image = cv2.resize(image.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        image += rng.normal(0, rng.uniform(1, 3), image.shape)
        return Scene(
            image=np.clip(image, 0, 255).astype(np.uint8),
            labels=np.ascontiguousarray(self.labels[::2, ::2]),
            instances=np.ascontiguousarray(self.instances[::2, ::2]),
        )


def _ground(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])


def _wall(x0: float, x1: float, y0: float, y1: float, z: float) -> np.ndarray:
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def _noise(rng: np.random.Generator, scale: int) -> np.ndarray:
    """Smooth unit-variance noise, features of about `scale` pixels; the canvas twice each way, float32."""
    cells = max(_CANVAS // scale, 4)
    grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
    step = _CANVAS // cells
    field = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    field = cv2.resize(field[2 * step : -2 * step, 2 * step : -2 * step], (_CANVAS, _CANVAS))
    return np.tile((field - field.mean()) / field.std(), (2, 2))
