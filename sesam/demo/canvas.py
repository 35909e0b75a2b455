"""A pinhole camera and a canvas on which polygons given in meters are painted.

World coordinates: x to the right, y up from the ground, z ahead of the camera. Later paint hides earlier paint.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

SIZE = 256  # side of a scene, pixels
CANVAS_SIZE = 2 * SIZE  # twice a scene's, so that the photograph is antialiased
FOCAL_LENGTH = 0.72 * CANVAS_SIZE  # pixels: a view 70 degrees wide
CAMERA_HEIGHT = 2.0  # meters
NOISE_SCALES = (2, 6, 24, 96)  # pixels of the canvas: grain, leaves, patches, uneven light

Texture = tuple[tuple[int, float], ...]  # (one of NOISE_SCALES, standard deviation relative to the color)
GRAIN: Texture = ((2, 0.06),)


@dataclass(frozen=True)
class Camera:
    """Position and direction of the camera."""

    horizon: float  # its row, pixels of the canvas
    center: float  # column of the street's vanishing point, pixels of the canvas
    x: float  # meters from the middle of the street

    def project(self, points: ArrayLike) -> np.ndarray:
        """World points (N, 3) in meters to canvas points (N, 2) float64, x and y in pixels."""
        x, y, z = np.asarray(points, np.float64).T
        z = np.maximum(z, 0.8)  # what is beside or behind the camera has no projection: move it ahead
        column = self.center + FOCAL_LENGTH * (x - self.x) / z
        row = self.horizon + FOCAL_LENGTH * (CAMERA_HEIGHT - y) / z
        return np.stack([column, row], axis=1)


class Canvas:
    """A scene while it is painted.

    image: (512, 512, 3) float32 RGB, 0 to 255. labels: (512, 512) uint8 class ids. instances: (512, 512) uint16 object
    ids. instance: the id of the object being painted. sun: meters of shadow per meter of height, positive to the right.
    nested: whether windows, doors, bicycles and riders are classes.
    """

    def __init__(self, rng: np.random.Generator, camera: Camera, sun: float, nested: bool = False) -> None:
        self.rng, self.camera, self.sun, self.nested = rng, camera, sun, nested
        self.image = np.zeros((CANVAS_SIZE, CANVAS_SIZE, 3), np.float32)
        self.labels = np.zeros((CANVAS_SIZE, CANVAS_SIZE), np.uint8)
        self.instances = np.zeros((CANVAS_SIZE, CANVAS_SIZE), np.uint16)
        self.instance = 0
        self.noise = {scale: smooth_noise(rng, scale) for scale in NOISE_SCALES}

    def paint(
        self,
        points: ArrayLike,
        color: ArrayLike,
        label: int | None = None,
        texture: Texture = GRAIN,
        new_instance: bool = False,
        alpha: float = 1.0,
    ) -> None:
        """Fill the polygon of world points (N, 3) in meters with an RGB color (3,), 0 to 255.

        Without a label only the photograph changes. With one the pixels join the object being painted, or begin another
        if `new_instance`, which takes no id if the polygon is out of view.
        """
        # clipped because cv2 takes int32, and points near the camera project far outside
        outline = np.clip(np.round(self.camera.project(points)), -8 * CANVAS_SIZE, 8 * CANVAS_SIZE).astype(np.int32)
        (left, top), (right, bottom) = np.maximum(outline.min(0), 0), np.minimum(outline.max(0) + 1, CANVAS_SIZE)
        if left >= right or top >= bottom:
            return
        polygon = np.zeros((bottom - top, right - left), np.uint8)
        inside = cv2.fillPoly(polygon, [outline - (left, top)], 1).astype(bool)
        window = np.s_[top:bottom, left:right]
        shade = np.ones(inside.shape, np.float32)
        shift = self.rng.integers(0, CANVAS_SIZE, 2)  # or one pattern would run through all polygons
        for scale, strength in texture:
            row, column = (top + shift[0]) % CANVAS_SIZE, (left + shift[1]) % CANVAS_SIZE
            shade += strength * self.noise[scale][row : row + inside.shape[0], column : column + inside.shape[1]]
        painted = np.asarray(color, np.float32) * shade[inside][:, None]
        if alpha < 1:
            painted = alpha * painted + (1 - alpha) * self.image[window][inside]
        self.image[window][inside] = painted
        if label is not None:
            self.instance += new_instance
            self.labels[window][inside] = label
            self.instances[window][inside] = self.instance

    def paint_shadow(self, x: float, z: float, width: float, depth: float, height: float) -> None:
        """Darken the ground beside an object at (x, z) of this width, depth and height, all in meters."""
        if z - depth / 2 < 1.2:  # it would reach under the camera, where `project` distorts it
            return
        angles = circle_angles(20)
        reach = self.sun * height * 0.5  # half of what geometry says, by eye
        across = x + reach / 2 + (width / 2 + abs(reach) / 2) * np.cos(angles)
        along = z + depth / 2 * np.sin(angles)
        self.paint(np.stack([across, np.zeros_like(angles), along], axis=1), (20, 20, 30), texture=(), alpha=0.45)


def ground(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    """Corners (4, 3) of a rectangle on the ground, meters."""
    return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])


def wall(x0: float, x1: float, y0: float, y1: float, z: float) -> np.ndarray:
    """Corners (4, 3) of an upright rectangle that faces the camera, meters."""
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def circle_angles(count: int) -> np.ndarray:
    """`count` angles (count,) float64 evenly around a circle, radians."""
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def smooth_noise(rng: np.random.Generator, scale: int) -> np.ndarray:
    """Noise of mean 0, variance 1 and features of about `scale` pixels, (1024, 1024) float32: four times the canvas."""
    cells = max(CANVAS_SIZE // scale, 4)
    step = CANVAS_SIZE // cells
    # padded by wrapping around and cropped again, so that the tiles below join without an edge
    grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
    field = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    field = cv2.resize(field[2 * step : -2 * step, 2 * step : -2 * step], (CANVAS_SIZE, CANVAS_SIZE))
    return np.tile((field - field.mean()) / field.std(), (2, 2))
