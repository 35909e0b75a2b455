"""Weak labels: never another class, never a region forgotten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_factories import connected
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sesam.artifacts.drawn_prompts import DrawnBox, read_drawn_prompts, write_drawn_prompts
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import SesamError
from sesam.geometry.regions import Region
from sesam.geometry.strokes import draw_stroke
from sesam.labels import fill_boxes
from sesam.simulation import longest_path, simulate_boxes, simulate_weak_label

KINDS = ("coarse", "scribble", "point")


def blocky(values: np.ndarray) -> np.ndarray:
    """Small random maps scaled up, so that regions have an inside."""
    return np.kron(values, np.ones((4, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(values=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 255])))
def test_labels_stay_inside_and_reach_every_region(params, kind: str, values: np.ndarray) -> None:
    fine, weak = blocky(values), params.weak_labels.model_copy(update={"kind": kind, "min_area": 12})
    drawn = simulate_weak_label(fine, weak)
    labeled = drawn != 255
    assert (drawn[labeled] == fine[labeled]).all()
    for k in (0, 1, 2):
        for region in connected(fine == k):
            reached = (drawn[region.slices][region.mask] == k).any()
            assert reached == (region.area >= weak.min_area)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_scene(params, scene, kind: str) -> None:
    drawn = simulate_weak_label(scene.labels, params.weak_labels.model_copy(update={"kind": kind}))
    labeled = drawn != 255
    assert (drawn[labeled] == scene.labels[labeled]).all()
    ratio = labeled.mean()
    low, high = {"coarse": (0.4, 0.9), "scribble": (0.01, 0.1), "point": (0.001, 0.02)}[kind]
    assert low < ratio < high


@pytest.mark.parametrize("kind", ["coarse", "scribble"])
def test_no_boundary_pixel_of_a_large_region(params, kind: str) -> None:
    fine = np.full((60, 80), 255, np.uint8)
    fine[10:50, 10:70] = 3
    drawn = simulate_weak_label(fine, params.weak_labels.model_copy(update={"kind": kind})) == 3
    assert drawn.any() and not drawn[10].any() and not drawn[:, 69].any()


@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 5, 8])
def test_a_stroke_is_as_wide_as_it_is_told(thickness: int) -> None:
    level, slope = (
        draw_stroke((60, 90), np.array(line), thickness) for line in ([[20, 30], [70, 30]], [[20, 10], [60, 50]])
    )
    assert (level[:, 40:50].sum(0) == thickness).all()
    assert level[:, :15].sum() == level[:, 76:].sum() == 0  # round ends, no longer than that
    assert abs(slope.sum() / np.hypot(40, 40) - thickness) <= 1
    point = draw_stroke((20, 20), np.array([[10, 10]]), thickness)
    assert point.any(0).sum() == point.any(1).sum() == thickness


def path_in(skeleton: np.ndarray) -> np.ndarray:
    """The longest path as pixels (n, 2) x, y."""
    return np.argwhere(skeleton)[longest_path(skeleton), ::-1]


def test_longest_path_of_a_fork() -> None:
    skeleton = np.zeros((9, 20), bool)
    skeleton[4, 2:18] = True  # a line of 16 pixels
    skeleton[1:4, 9] = True  # a short branch
    path = path_in(skeleton)
    assert len(path) == 16 and {tuple(path[0]), tuple(path[-1])} == {(2, 4), (17, 4)}


def test_longest_path_takes_the_longest_part_and_a_lone_pixel() -> None:
    skeleton = np.zeros((9, 20), bool)
    skeleton[1, 1:4] = skeleton[6, 3:15] = True
    assert set(path_in(skeleton)[:, 1]) == {6}
    lone = np.zeros((3, 3), bool)
    lone[1, 2] = True
    assert path_in(lone).tolist() == [[2, 1]]


def test_the_same_region_has_the_same_depth_at_every_call(scene) -> None:
    """OpenCV's precise distance transform alone has not: in every fifth call some pixels' last bits differ."""
    for k in np.unique(scene.labels):
        for region in connected(scene.labels == k, 64):
            calls = [Region(region.top, region.left, region.mask.copy()).distance for _ in range(6)]
            assert calls[0].dtype == np.float32 and all((calls[0] == other).all() for other in calls[1:])
            squares = calls[0].astype(np.float64) ** 2
            assert np.abs(squares - np.rint(squares)).max() < 1e-3  # of whole numbers, so nothing was lost


def test_boxes_label_no_pixel_and_are_filled_for_the_baseline(params, tmp_path: Path) -> None:
    fine = np.full((40, 60), 255, np.uint8)
    fine[5:30, 10:50], fine[10:20, 20:30], fine[35, 2:5] = 1, 0, 2
    weak = params.weak_labels.model_copy(update={"kind": "box"})
    drawn = simulate_boxes(fine, weak)
    assert (simulate_weak_label(fine, weak) == 255).all()
    assert list(drawn.boxes) == [DrawnBox(0, (20, 10, 30, 20)), DrawnBox(1, (10, 5, 50, 30))]  # the small one has none
    strokes = np.full_like(fine, 255)
    strokes[12, 22:25] = 2
    filled = fill_boxes(strokes, [(x.class_id, x.box) for x in drawn.boxes])
    assert (filled[12, 22:25] == 2).all() and (filled[10:20, 20:30] != 1).all()
    assert (filled == 1).sum() == 25 * 40 - 100 and (filled[30:] == 255).all()

    record = ImageRecord("a/7", "7.png", 40, 60, "0" * 64)
    write_drawn_prompts(tmp_path, record, drawn)
    assert read_drawn_prompts(tmp_path, record, 2) == drawn
    assert not read_drawn_prompts(tmp_path, replace(record, id="8"), 2).boxes
    for damage in (
        '{"boxes": [{"class": 1, "box": [0, 0, 61, 4]}]}',
        '{"background_points": [{"class": 1, "point": [0, 40]}]}',
    ):
        (tmp_path / "a/7.json").write_text(damage)
        with pytest.raises(SesamError, match="is damaged"):
            read_drawn_prompts(tmp_path, record, 2)
    (tmp_path / "a/7.json").write_text('{"boxes": [{"class": 2, "box": [0, 0, 1, 1]}]}')
    with pytest.raises(SesamError, match="class 2"):
        read_drawn_prompts(tmp_path, record, 2)
