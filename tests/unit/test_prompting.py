"""Steps 0 to 2: augmentation, instances, sampling."""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import edit_params
from dataset_factories import connected
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import skeletonize

from sesam.artifacts.drawn_prompts import BackgroundPoint, DrawnBox, DrawnPrompts, write_drawn_prompts
from sesam.artifacts.manifest import Manifest
from sesam.geometry.regions import MAX_THINNED_DISTANCE, Region, connected_regions, skeleton
from sesam.geometry.rle import counts_to_rle, mask_to_counts, mask_to_rle, rle_to_mask
from sesam.labels import class_thresholds, confident_labels
from sesam.params import ComponentParams
from sesam.prompting import image_prompts, predictions_alone, sample_points, split_instances
from sesam.sam.inference import component_prompts
from stages import prepare, prompts, teacher_predictions, weak_labels

MAPS = arrays(np.uint8, (8, 9), elements=st.sampled_from([0, 1, 255]))


@given(MAPS, MAPS)
def test_predictions_label_what_annotators_left_empty(weak, confident) -> None:
    alone, drawn = predictions_alone(weak, confident), weak != 255
    assert (alone[drawn] == 255).all() and (alone[~drawn] == confident[~drawn]).all()


@settings(max_examples=25)
@given(weak=MAPS, predicted=MAPS)
def test_predictions_change_no_prompt_of_weak_labels(params, weak, predicted) -> None:
    """A teacher that knows nothing of a class is sure of others there: its pixels do not prompt for annotators'."""
    sure, key = np.full_like(weak, 255), ("r1", "7")
    changed = params.model_copy(update={"components": params.components.model_copy(update={"min_area": 3})})
    drawn = image_prompts(weak, np.full_like(weak, 255), np.zeros_like(weak), changed, key)
    both = image_prompts(weak, np.where(predicted == 255, 0, predicted), sure, changed, key)
    assert both[: len(drawn)] == drawn
    masks = [rle_to_mask(component.rle, weak.shape) for component in both]
    assert all((weak[mask] == component.class_id).all() for mask, component in zip(masks, drawn, strict=False))
    assert all((weak[mask] == 255).all() and mask.sum() >= 3 for mask in masks[len(drawn) :])


@pytest.mark.parametrize(("threshold", "confidence"), [(0.9, [229, 230]), (1.0, [254, 255])])
def test_confidence_is_rounded_down_before_it_is_compared(threshold: float, confidence: list) -> None:
    # 0.899 * 255 = 229.2 is stored as 229; 0.9 * 255 = 229.5 asks for 230
    predicted = np.array([3, 3], np.uint8)
    assert confident_labels(predicted, np.array(confidence, np.uint8), threshold).tolist() == [255, 3]


def test_a_class_threshold_lets_its_share_of_predictions_pass() -> None:
    counts = np.zeros((4, 256), int)
    counts[0, 250], counts[1, [200, 100, 10]] = 9, (2, 5, 3)
    counts[2, 30] = 1  # never sure; class 3 is never predicted
    limits = class_thresholds(counts, 0.95, 0.7)
    predicted, confidence = (x.astype(np.uint8) for x in np.nonzero(counts))
    assert confident_labels(predicted, confidence, limits).tolist() == [0, 255, 1, 1, 2]
    assert limits[[0, 3]].tolist() == [0.95, 0.95]
    assert (class_thresholds(counts, 0.95, 0) == 0.95).all()
    assert confident_labels(np.array([255], np.uint8), np.array([0], np.uint8), limits).tolist() == [255]


@given(arrays(int, (3, 256), elements=st.integers(0, 3), fill=st.just(0)), st.floats(0, 1), st.floats(0, 1))
def test_as_many_predictions_pass_as_are_asked_for(counts: np.ndarray, gamma: float, fraction: float) -> None:
    indices = np.nonzero(counts)
    pixels, (predicted, confidence) = counts[indices], (x.astype(np.uint8) for x in indices)
    passed = confident_labels(predicted, confidence, class_thresholds(counts, gamma, fraction)) != 255
    sure = confident_labels(predicted, confidence, gamma) != 255
    assert passed[sure].all()
    for k in range(3):
        used, asked = (predicted == k) & passed, fraction * counts[k].sum()
        assert pixels[used].sum() >= asked
        if (used & ~sure).any():  # no more than is needed
            assert pixels[used & (confidence > confidence[used].min())].sum() < asked


@pytest.mark.parametrize(
    ("per_instance", "connectivity", "min_area", "expected"),
    [
        (True, 8, 5, [(1, 9)]),
        (True, 8, 2, [(0, 2), (1, 9)]),
        (True, 8, 1, [(0, 2), (0, 1), (1, 9)]),
        (True, 4, 1, [(0, 1), (0, 1), (0, 1), (1, 9)]),
        (False, 8, 1, [(0, 3), (1, 9)]),
        (False, 8, 5, [(1, 9)]),
    ],
)
def test_components_have_an_area(per_instance: bool, connectivity, min_area: int, expected: list) -> None:
    labels = np.full((6, 8), 255, np.uint8)
    labels[0, 0] = labels[1, 1] = 0  # diagonal
    labels[4, 4] = 0  # alone
    labels[0:3, 5:8] = 1  # large
    config = ComponentParams(per_instance=per_instance, connectivity=connectivity)
    assert [(k, region.area) for k, region in split_instances(labels, config, min_area)] == expected


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
    regions = [region for _, region in connected_regions(scene.labels, min_area=64)]
    shallow = [region for region in regions if region.distance.max() < 2 * MAX_THINNED_DISTANCE]
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
@settings(max_examples=25)
@given(values=MAPS, count=st.integers(1, 9), seed=st.integers(0, 99))
def test_points_are_distinct_pixels_of_their_component(params, strategy, values, count, seed) -> None:
    config = params.sampling.model_copy(update={"strategy": strategy, "num_points": count})
    confidence = np.random.default_rng(seed).integers(0, 256, values.shape).astype(np.uint8)
    for region in connected(values == 1):
        points = sample_points(region, config, confidence, np.random.default_rng(seed))
        assert 1 <= len(points) <= count and len(set(points)) == len(points)
        assert all(region.full_mask(values.shape)[y, x] for x, y in points)


def test_points_of_each_strategy(params) -> None:
    def sample(region: Region, confidence: np.ndarray, **changes: object) -> list:
        config = params.sampling.model_copy(update=changes)
        return sample_points(region, config, confidence, np.random.default_rng(0))

    bar, row = Region(10, 20, np.ones((5, 40), bool)), Region(0, 0, np.ones((1, 4), bool))
    points = sample(bar, np.zeros((60, 80), np.uint8), num_points=5)  # the middle of the bar
    assert len(points) == 5 and {y for _, y in points} <= {11, 12, 13}
    confidence = np.array([[1, 9, 3, 8]], np.uint8)
    assert sample(row, confidence, strategy="confident", num_points=2) == [(1, 0), (3, 0)]
    assert len(sample(row, confidence, num_points=9)) == 4  # few pixels are all taken


def test_prompts_depend_only_on_params_seed_round_image_and_component(params) -> None:
    def prompts(round_name: str = "r1", seed: int = 0, **changes: object) -> list:
        groups = {group: getattr(params, group).model_copy(update=values) for group, values in changes.items()}
        five = params.sampling.model_copy(update={"num_points": 5})
        changed = params.model_copy(update={"seed": seed, "sampling": five, **groups})
        return image_prompts(weak, np.full_like(weak, 255), np.zeros_like(weak), changed, (round_name, "a"))

    weak = np.full((40, 60), 255, np.uint8)
    weak[5:30, 5:25] = 2
    (alone,) = prompts()
    weak[35:39, 40:59] = 1  # another component comes before it
    assert [(component.number, component.class_id) for component in prompts()] == [(1, 1), (2, 2)]
    assert prompts()[1] == replace(alone, number=2)
    assert prompts("r2")[1].points != alone.points != prompts(seed=1)[1].points
    assert prompts(sam={"enabled": False}) == []
    boxes = prompts(sampling={"prompt_type": "box"})  # far edges exclusive
    assert [(component.box, component.points) for component in boxes] == [
        ((40, 35, 59, 39), None),
        ((5, 5, 25, 30), None),
    ]


def test_background_points_that_prompt_nothing_are_told(folder_dataset: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, runtime__num_workers=1, dataset__classes=["left", "right", "none"])
    monkeypatch.setattr(sys, "argv", ["prompts", "r1"])
    for stage in (prepare, weak_labels, teacher_predictions):
        stage.main()
    record = Manifest.load().train[1]
    points = tuple(BackgroundPoint(k, (3, 3)) for k in (0, 2, 2))
    write_drawn_prompts(Path("data/weak"), record, DrawnPrompts(background_points=points))
    capsys.readouterr()
    prompts.main()
    assert "without a component, which prompt nothing: 2, in images: 1 (1)." in capsys.readouterr().err
    edit_params(folder_dataset, sam__enabled=False)
    prompts.main()
    assert "warning" not in capsys.readouterr().err


def test_boxes_and_background_points_prompt(params) -> None:
    weak = np.full((40, 60), 255, np.uint8)
    weak[5, 5:20], weak[30, 5:20] = 1, 2
    none = np.full_like(weak, 255), np.zeros_like(weak)
    boxes = DrawnBox(1, (30, 10, 50, 35)), DrawnBox(1, (35, 15, 40, 20))
    background = [BackgroundPoint(1, (18, 12)), BackgroundPoint(1, (37, 17)), BackgroundPoint(1, (45, 30))]
    background.append(BackgroundPoint(0, (3, 3)))  # nothing is of its class
    drawn = DrawnPrompts(boxes, tuple(background))
    plain = image_prompts(weak, *none, params, ("r1", "7"))
    first, second, outer, inner = image_prompts(weak, *none, params, ("r1", "7"), drawn)
    assert (replace(first, background_points=None), second) == tuple(plain)
    assert first.background_points == [(18, 12)] and second.background_points is None
    assert outer.drawn_box and (outer.number, outer.class_id, outer.box) == (3, 1, (30, 10, 50, 35))
    assert outer.background_points == [(45, 30)] and inner.background_points == [(37, 17)]
    inside = rle_to_mask(outer.rle, weak.shape)
    assert inside.sum() == 20 * 25 and inside[10:35, 30:50].all()
    prompts = component_prompts([first, outer])
    assert prompts[0].point_labels.tolist() == [1] * len(first.points) + [0]
    assert prompts[1].point_labels.tolist() == [0] and prompts[1].box.tolist() == [30, 10, 50, 35]
    layouts = [x.layout for x in component_prompts([second, inner])]
    assert layouts == [(len(second.points), False, False), (1, True, False)]
