"""Strokes: lines with a width."""

import cv2
import numpy as np


def draw_stroke(shape: tuple[int, int], line: np.ndarray, thickness: int) -> np.ndarray:
    """Mask (H, W) bool of a line through points (n, 2) int, x and y, drawn with a disc `thickness` pixels wide."""
    drawn = np.zeros(shape, np.uint8)
    # with a disc, because OpenCV's own thickness depends on its version (5.0 draws five pixels for three)
    points = np.concatenate([line, line[-1:]])  # OpenCV does not draw a single point
    cv2.polylines(drawn, [points.reshape(-1, 1, 2).astype(np.int32)], False, 1, 1)
    from_center = np.arange(thickness) - (thickness - 1) / 2
    disc = np.hypot(from_center, from_center[:, None]) <= thickness / 2
    return cv2.dilate(drawn, disc.astype(np.uint8)).astype(bool)
