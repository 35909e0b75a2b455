"""What contrast and fog do to an image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.robustness import CORRUPTIONS, plasma


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_more_severe_the_less_is_left(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    corrupted = [CORRUPTIONS[name](image, severity) for severity in range(6)]
    assert (corrupted[0] == image).all()
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in corrupted)
    original = image - image.mean((0, 1))
    left = [float((original * one).mean() / (original**2).mean()) for one in corrupted]  # of the image's own contrast
    assert left[0] == pytest.approx(1) and left[5] < 0.4
    assert all(b <= a + 0.01 for a, b in pairwise(left))  # two severities of fog differ in its clouds alone
    assert (CORRUPTIONS[name](image, 3) == corrupted[3]).all()


def test_a_cloud_is_coarse() -> None:
    cloud = plasma(64, 2.0, np.random.default_rng(0))
    assert cloud.min() == 0 and cloud.max() == 1
    assert np.abs(np.diff(cloud, axis=0)).mean() < 0.1
