"""Steps 0 to 2: augmentation, instances, sampling."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from dataset_factories import connected
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import skeletonize

from sesam.geometry.regions import MAX_THINNED_DISTANCE, Region, connected_regions, skeleton
from sesam.geometry.rle import counts_to_rle, mask_to_counts, mask_to_rle, rle_to_mask
from sesam.labels import confident_labels
from sesam.params import ComponentParams
from sesam.prompting import augment, image_prompts, sample_points, split_instances

MAPS = arrays(np.uint8, (8, 9), elements=st.sampled_from([0, 1, 255]))


def test_augment_by_hand() -> None:
    weak = np.array([[1, 255, 255]], np.uint8)
    confident = np.array([[0, 0, 255]], np.uint8)
    assert augment(weak, confident).tolist() == [[1, 0, 255]]


@given(MAPS, MAPS)
def test_augment_never_overwrites_weak_labels(weak, confident) -> None:
    augmented = augment(weak, confident)
    assert (augmented[weak != 255] == weak[weak != 255]).all()


def test_confidence_is_rounded_down_before_it_is_compared() -> None:
    # 0.899 * 255 = 229.2 is stored as 229; 0.9 * 255 = 229.5 asks for 230
    assert confident_labels(np.array([3, 3], np.uint8), np.array([229, 230], np.uint8), 0.9).tolist() == [255, 3]
    assert confident_labels(np.array([3, 3], np.uint8), np.array([254, 255], np.uint8), 1.0).tolist() == [255, 3]


@pytest.mark.parametrize(
    ("per_instance", "connectivity", "min_area", "expected"),
    [
        (True, 8, 5, [(0, 1), (1, 9)]),
        (True, 8, 2, [(0, 2), (0, 1), (1, 9)]),
        (True, 4, 1, [(0, 1), (0, 1), (0, 1), (1, 9)]),
        (False, 8, 1, [(0, 3), (1, 9)]),
        (False, 8, 5, [(0, 3), (1, 9)]),
    ],
)
def test_small_components_need_a_weak_label(per_instance: bool, connectivity, min_area: int, expected: list) -> None:
    augmented, weak = np.full((2, 6, 8), 255, np.uint8)
    augmented[0, 0] = augmented[1, 1] = 0  # diagonal, no weak label
    augmented[4, 4] = weak[4, 4] = 0  # alone, weakly labeled
    augmented[0:3, 5:8] = 1  # large
    config = ComponentParams(per_instance=per_instance, connectivity=connectivity, min_area=min_area)
    assert [(k, region.area) for k, region in split_instances(augmented, weak, config)] == expected
    unlabeled = split_instances(augmented, np.full_like(weak, 255), config)
    assert [(k, region.area) for k, region in unlabeled] == [each for each in expected if each[1] >= min_area]


@given(MAPS, st.sampled_from([4, 8]))
def test_components_of_all_classes_are_those_of_each(values, connectivity) -> None:
    together = [(k, r.full_mask(values.shape).tobytes()) for k, r in connected_regions(values, connectivity)]
    apart = [(k, r) for k in (0, 1) for r in connected(values == k, connectivity=connectivity)]
    assert sorted(together) == sorted((k, r.full_mask(values.shape).tobytes()) for k, r in apart)
    assert [k for k, _ in together] == sorted(k for k, _ in together)


@given(MAPS)
def test_run_lengths_round_trip(values) -> None:
    assert (rle_to_mask(mask_to_rle(values == 1), values.shape) == (values == 1)).all()
    assert counts_to_rle(mask_to_counts(values == 1), values.shape) == mask_to_rle(values == 1)
    for _, region in connected_regions(values):
        assert region.rle(values.shape) == mask_to_rle(region.full_mask(values.shape))


def test_shallow_skeletons_equal_scikit_image(scene) -> None:
    found = [region for _, region in connected_regions(scene.labels, min_area=64)]
    shallow = [region for region in found if region.distance.max() < 2 * MAX_THINNED_DISTANCE]
    assert len(shallow) > 5
    for region in shallow:
        exact = skeletonize(np.pad(region.mask, 1))[1:-1, 1:-1]
        assert (skeleton(region.distance).pixels == np.argwhere(exact)[:, ::-1]).all()


def test_deep_skeletons_are_connected_and_near_the_exact_one(scene) -> None:
    large = cv2.resize(scene.labels, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    deep = [region for _, region in connected_regions(large) if region.distance.max() >= 4 * MAX_THINNED_DISTANCE]
    assert deep
    for region in deep:
        cells, pixels = skeleton(region.distance)
        step = int(region.distance.max()) // MAX_THINNED_DISTANCE
        exact = skeletonize(np.pad(region.mask, 1))[1:-1, 1:-1]
        assert region.mask[pixels[:, 1], pixels[:, 0]].all()
        assert len(list(connected(cells))) == 1
        away = cv2.distanceTransform((~exact).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near = away[pixels[:, 1], pixels[:, 0]]
        assert np.median(near) <= step and np.quantile(near, 0.95) <= 3 * step


@pytest.mark.parametrize("strategy", ["skeleton", "random", "confident", "center"])
@settings(max_examples=25, deadline=None)
@given(values=MAPS, count=st.integers(1, 9), seed=st.integers(0, 99))
def test_points_are_distinct_pixels_of_their_component(params, strategy, values, count, seed) -> None:
    config = params.sampling.model_copy(update={"strategy": strategy, "num_points": count})
    confidence = np.random.default_rng(seed).integers(0, 256, values.shape).astype(np.uint8)
    for region in connected(values == 1):
        points = sample_points(region, config, confidence, np.random.default_rng(seed))
        assert 1 <= len(points) <= count and len(set(points)) == len(points)
        whole = region.full_mask(values.shape)
        assert all(whole[y, x] for x, y in points)


def test_skeleton_points_follow_the_middle_and_few_pixels_are_all_taken(params) -> None:
    bar = Region(10, 20, np.ones((5, 40), bool))
    config = params.sampling
    points = sample_points(bar, config, np.zeros((60, 80), np.uint8), np.random.default_rng(0))
    assert len(points) == 5 and {y for _, y in points} <= {11, 12, 13}
    pair = Region(0, 0, np.ones((1, 2), bool))
    assert len(sample_points(pair, config, np.zeros((1, 2), np.uint8), np.random.default_rng(0))) == 2


def test_confident_points_are_the_most_confident(params) -> None:
    config = params.sampling.model_copy(update={"strategy": "confident", "num_points": 2})
    confidence = np.array([[1, 9, 3, 8]], np.uint8)
    points = sample_points(Region(0, 0, np.ones((1, 4), bool)), config, confidence, np.random.default_rng(0))
    assert points == [(1, 0), (3, 0)]


def test_box_is_half_open(params) -> None:
    weak = np.full((10, 12), 255, np.uint8)
    weak[2:6, 3:8] = 0
    boxes = params.model_copy(update={"sampling": params.sampling.model_copy(update={"prompt_type": "box"})})
    (component,) = image_prompts(weak, np.zeros_like(weak), np.zeros_like(weak), boxes, ("r1", "a"))
    assert component.box == (3, 2, 8, 6) and component.points is None


def test_points_depend_only_on_seed_round_image_and_component(params) -> None:
    weak = np.full((40, 60), 255, np.uint8)
    weak[5:30, 5:25] = 2
    nothing = np.zeros_like(weak)
    alone = image_prompts(weak, nothing, nothing, params, ("r1", "a"))
    weak[35:39, 40:59] = 1  # another component comes before it
    both = image_prompts(weak, nothing, nothing, params, ("r1", "a"))
    assert [component.number for component in both] == [1, 2] and both[0].class_id == 1
    assert both[1] == replace(alone[0], number=2)
    without = params.model_copy(update={"sam": params.sam.model_copy(update={"enabled": False})})
    assert image_prompts(weak, nothing, nothing, without, ("r1", "a")) == []
    assert image_prompts(weak, nothing, nothing, params, ("r2", "a"))[1].points != alone[0].points
    other = params.model_copy(update={"seed": params.seed + 1})
    assert image_prompts(weak, nothing, nothing, other, ("r1", "a"))[1].points != alone[0].points
