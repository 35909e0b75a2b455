"""The benchmark of label rules: SAMs that know the fine labels, and how masks are painted."""

import numpy as np

from benchmarks.erring_sam import FineRegions
from benchmarks.label_rules import collect_masks, limits, paint
from sesam.artifacts.component_records import Candidate, Component
from sesam.geometry.rle import mask_to_rle, rle_to_mask

FINE = np.full((40, 60), 255, np.uint8)
FINE[:, :30] = 0
FINE[10:20, 10:20] = 1  # a window in a wall
WALL, WINDOW = FINE == 0, FINE == 1


def stroke(number: int, class_id: int, rows: slice, columns: slice) -> Component:
    mask = np.zeros(FINE.shape, bool)
    mask[rows, columns] = True
    points = [(int(x), int(y)) for y, x in np.argwhere(mask)[:5]]
    return Component(number, class_id, mask_to_rle(mask), points, None)


ON_WALL, ON_WINDOW = stroke(1, 0, np.s_[30:32], np.s_[2:25]), stroke(2, 1, np.s_[14:16], np.s_[12:18])


def test_a_perfect_sam_answers_with_the_region_under_the_prompt() -> None:
    regions = FineRegions(FINE)
    for component, expected in ((ON_WALL, WALL), (ON_WINDOW, WINDOW)):
        best, *others = regions.perfect(component)
        assert np.array_equal(rle_to_mask(best.rle, FINE.shape), expected)
        assert all(other.predicted_iou < best.predicted_iou for other in others)


def test_an_erring_sam_answers_with_parts_wholes_and_spills() -> None:
    regions, sizes = FineRegions(FINE), set[bool]()
    for seed in range(30):
        candidates = regions.erring(ON_WALL, np.random.default_rng(seed))
        assert candidates == regions.erring(ON_WALL, np.random.default_rng(seed)) and len(candidates) == 3
        masks = [rle_to_mask(candidate.rle, FINE.shape) for candidate in candidates]
        assert all(
            (mask & WALL).any() and 0 <= one.predicted_iou <= 1 for mask, one in zip(masks, candidates, strict=True)
        )
        sizes |= {bool(mask.sum() > WALL.sum()) for mask in masks}
    assert sizes == {True, False}


def test_conflicts_and_painting() -> None:
    weak = np.full_like(FINE, 255)
    weak[30:32, 2:25], weak[14:16, 12:18] = 0, 1
    answers = {1: WALL | WINDOW, 2: WINDOW}  # the wall's mask holds its window
    candidates = {k: [Candidate(0.9, mask_to_rle(mask))] * 3 for k, mask in answers.items()}
    found = collect_masks([ON_WALL, ON_WINDOW], candidates, weak)
    assert found.coverage[:, 0].tolist() == [1, 1]
    assert found.conflict()[:, 0].tolist() == [12 / 58, 0]
    assert (limits(found)[WALL] == 255).all()  # the former rule refused the wall
    assert np.array_equal(limits(found, conflict=0.4), FINE)
    on_top = np.array([[1.0] * 3, [0.0] * 3])
    assert (paint(found, found.coverage > 0, found.iou, on_top)[WINDOW] == 0).all()
