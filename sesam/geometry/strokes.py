"""Lines of a width, as people draw them."""

from __future__ import annotations

import cv2
import numpy as np


def draw_stroke(shape: tuple[int, int], line: np.ndarray, thickness: int) -> np.ndarray:
    """A line through points (n, 2) int, x and y, drawn with a disc `thickness` pixels wide: (H, W) bool.

    Not by OpenCV's own thickness: how many pixels that covers depends on its version (5.0 makes five of three).
    """
    drawn = np.zeros(shape, np.uint8)
    ended = np.concatenate([line, line[-1:]])  # of one point OpenCV draws nothing
    cv2.polylines(drawn, [ended.reshape(-1, 1, 2).astype(np.int32)], False, 1, 1)
    from_center = np.arange(thickness) - (thickness - 1) / 2
    disc = np.hypot(from_center, from_center[:, None]) <= thickness / 2
    return cv2.dilate(drawn, disc.astype(np.uint8)).astype(bool)
