"""Steps 0 to 2 of the method: augment the weak labels, separate instances, sample prompts."""

import numpy as np

from sesam.artifacts.component_records import Component, Point
from sesam.geometry.regions import Region, connected_regions, innermost_pixel, region_from_mask, skeleton
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.params import ComponentParams, Params, SamplingParams
from sesam.seeds import seed_of


def add_confident(weak: np.ndarray, confident: np.ndarray) -> np.ndarray:
    """Step 0: the weak label where there is one, else the confident prediction; all (H, W) uint8, 255 = neither."""
    return np.where(weak != IGNORE_INDEX, weak, confident)


def split_instances(augmented: np.ndarray, weak: np.ndarray, config: ComponentParams) -> list[tuple[int, Region]]:
    """Step 1: (class, component) of every connected component, by class and scan order.

    Components below `min_area` pixels stay only if they hold a weakly labeled pixel. Without `per_instance`, all
    pixels of a class are one component.
    """
    if config.per_instance:
        return connected_regions(augmented, config.connectivity, config.min_area, marked=weak != IGNORE_INDEX)
    classes = [(k, augmented == k) for k in np.setdiff1d(augmented, [IGNORE_INDEX])]
    kept = [(k, mask) for k, mask in classes if mask.sum() >= config.min_area or (mask & (weak != IGNORE_INDEX)).any()]
    return [(int(k), region_from_mask(mask)) for k, mask in kept]


def sample_points(
    region: Region, config: SamplingParams, confidence: np.ndarray, rng: np.random.Generator
) -> list[Point]:
    """Step 2: at most `num_points` distinct pixels (x, y) of a component, in image coordinates.

    `skeleton` draws uniformly from the topological skeleton, `random` from the whole component, `confident` takes the
    teacher's most confident pixels (Kweon and Yoon 2024; confidence is (H, W) uint8), `center` the one pixel farthest
    from the outside.
    """
    pixels = skeleton(region.distance).pixels if config.strategy == "skeleton" else np.argwhere(region.mask)[:, ::-1]
    if config.strategy == "center" or len(pixels) == 0:
        pixels = np.array([innermost_pixel(region.distance)])
    if len(pixels) > config.num_points and config.strategy == "confident":
        x, y = rng.permutation(pixels).T  # of equally confident pixels, any
        ranked = np.argsort(-confidence[region.slices][y, x].astype(int), kind="stable")[: config.num_points]
        pixels = np.stack([x, y], axis=1)[ranked]
    elif len(pixels) > config.num_points:
        pixels = rng.choice(pixels, config.num_points, replace=False)
    return [(int(x) + region.left, int(y) + region.top) for x, y in pixels]


def image_prompts(
    weak: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, params: Params, key: tuple[str, str]
) -> list[Component]:
    """Steps 0 to 2: every component of an image with its prompt.

    weak, predicted, confidence: (H, W) uint8, 255 = unlabeled. key: (round, image id), for the seed.
    """
    if not params.sam.enabled:
        return []  # nothing is prompted, so no later stage has a mask
    augmented = add_confident(weak, confident_labels(predicted, confidence, params.teacher.confidence_threshold))
    components = []
    for number, (k, region) in enumerate(split_instances(augmented, weak, params.components), 1):
        points, box = None, None
        if params.sampling.prompt_type == "points":
            # seeded by the component's first pixel: neither its neighbors nor the order of work matter
            first = [region.top, region.left + int(region.mask[0].argmax())]
            rng = np.random.default_rng(seed_of(params.seed, *key, k, *first))
            points = sample_points(region, params.sampling, confidence, rng)
        elif params.sampling.prompt_type == "box":
            height, width = region.mask.shape
            box = (region.left, region.top, region.left + width, region.top + height)
        components.append(Component(number, k, region.rle(weak.shape), points, box))
    return components
