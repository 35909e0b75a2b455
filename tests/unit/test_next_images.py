"""Which images the simulated methods choose."""

import numpy as np
import pytest

from benchmarks.next_images import Predicted, by_gain, by_ranking

# images 0 and 1 show much of class 0, image 2 a little of the doubtful class 1, image 3 nothing else than image 0
PIXELS = np.array([[100, 0], [90, 0], [80, 10], [100, 0]], float)
PREDICTED = Predicted(PIXELS, PIXELS * [0.1, 0.5], np.array([0.3, 0.9, 0.2, 0.3]))


@pytest.mark.parametrize(("choose", "expected"), [(by_ranking, [1, 3]), (by_gain, [2, 3])])
def test_an_annotated_image_is_not_chosen_again(choose, expected: list[int]) -> None:
    known = np.array([True, False, False, False])
    assert choose(PREDICTED, known, 2) == expected
    assert choose(PREDICTED, known, 9) in ([1, 3, 2], [2, 3, 1])
    assert choose(PREDICTED, np.ones(4, bool), 2) == []


def test_what_is_known_already_adds_little() -> None:
    """Without annotated images the most of class 0 comes after the doubtful class."""
    assert by_gain(PREDICTED, np.zeros(4, bool), 2) == [2, 0]
