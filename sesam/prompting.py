"""Steps 0 to 2 of the method: augment the weak labels, separate instances, sample prompts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sesam.artifacts.component_records import Component
from sesam.artifacts.drawn_prompts import NO_PROMPTS, BackgroundPoint, Box, DrawnBox, DrawnPrompts, Point
from sesam.geometry.regions import Region, connected_regions, innermost_pixel, region_from_mask, skeleton
from sesam.geometry.rle import mask_to_rle, rle_to_mask
from sesam.labels import IGNORE_INDEX
from sesam.params import ComponentParams, Params, SamplingParams
from sesam.seeds import seed_of


def predictions_alone(weak: np.ndarray, confident: np.ndarray) -> np.ndarray:
    """Step 0: the confident predictions where there is no weak label, else 255; all (H, W) uint8, 255 = none."""
    return np.where(weak == IGNORE_INDEX, confident, np.uint8(IGNORE_INDEX))


def split_instances(labels: np.ndarray, config: ComponentParams, min_area: int = 1) -> list[tuple[int, Region]]:
    """Step 1: (class, component) of every connected component of at least `min_area` pixels, by class and scan order.

    labels: (H, W) uint8, 255 = none. Without `per_instance`, all pixels of a class are one component.
    """
    if config.per_instance:
        return connected_regions(labels, config.connectivity, min_area)
    classes = [(k, labels == k) for k in np.setdiff1d(labels, [IGNORE_INDEX])]
    return [(int(k), region_from_mask(mask)) for k, mask in classes if mask.sum() >= min_area]


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
    weak: np.ndarray,
    confident: np.ndarray,
    confidence: np.ndarray,
    params: Params,
    key: tuple[str, str],
    drawn: DrawnPrompts = NO_PROMPTS,
    classes: Sequence[str] = (),
) -> list[Component]:
    """Steps 0 to 2: every component of an image with its prompt: of weak labels, of predictions, and drawn boxes.

    weak, confident: weak labels and confident predictions, (H, W) uint8, 255 = none. confidence: of all predictions,
    (H, W) uint8. key: (round, image id), for the seed. classes: names, for concepts.
    """
    if not params.sam.enabled:
        return []  # nothing is prompted, so no later stage has a mask
    if params.sampling.prompt_type == "concept":
        return concept_components(weak, params, drawn, classes)
    regions = split_instances(weak, params.components)  # however small: annotators meant them
    regions += split_instances(predictions_alone(weak, confident), params.components, params.components.min_area)
    components = []
    for number, (k, region) in enumerate(regions, 1):
        points, box = None, None
        if params.sampling.prompt_type == "points":
            # seeded by the component's first pixel: neither its neighbors nor the order of work matter
            first = [region.top, region.left + int(region.mask[0].argmax())]
            rng = np.random.default_rng(seed_of(params.seed, *key, k, *first))
            points = sample_points(region, params.sampling, confidence, rng)
        elif params.sampling.prompt_type == "box":
            box = box_of(region)
        components.append(Component(number, k, region.rle(weak.shape), points, box))
    components += [box_component(len(components) + n, entry, weak.shape) for n, entry in enumerate(drawn.boxes, 1)]
    return add_background_points(components, drawn.background_points, weak.shape)


def box_of(region: Region) -> Box:
    """Its edges left, top, right, bottom, the last two exclusive."""
    height, width = region.mask.shape
    return region.left, region.top, region.left + width, region.top + height


def concept_components(
    weak: np.ndarray, params: Params, drawn: DrawnPrompts, classes: Sequence[str]
) -> list[Component]:
    """Instead of steps 0 to 2: a component per class that annotators found in the image, prompted with its name.

    It is the pixels and the insides of the boxes that they gave the class. Where they gave the image nothing, all
    classes are asked for, and have no pixel. Exemplars are the boxes that annotators drew, and with
    `sampling.exemplars` those of the class's connected regions.
    """
    regions = {int(k): weak == k for k in np.setdiff1d(weak, [IGNORE_INDEX])}
    labeled, exemplars = set(regions), dict[int, list[Box]]()
    for k, region in split_instances(weak, params.components) if params.sampling.exemplars else ():
        exemplars.setdefault(k, []).append(box_of(region))
    for entry in drawn.boxes:
        left, top, right, bottom = entry.box
        regions.setdefault(entry.class_id, np.zeros(weak.shape, bool))[top:bottom, left:right] = True
        exemplars.setdefault(entry.class_id, []).append(entry.box)
    nothing = np.zeros(weak.shape, bool)
    return [
        Component(
            number,
            k,
            mask_to_rle(regions.get(k, nothing)),
            drawn_box=k in regions and k not in labeled,
            concept=classes[k].replace("_", " "),
            exemplars=exemplars.get(k),
        )
        for number, k in enumerate(sorted(regions) or range(len(classes)), 1)
    ]


def box_component(number: int, entry: DrawnBox, shape: tuple[int, int]) -> Component:
    """A component of the inside of a box that annotators drew, prompted with it."""
    left, top, right, bottom = entry.box
    inside = Region(top, left, np.ones((bottom - top, right - left), bool))
    return Component(number, entry.class_id, inside.rle(shape), box=entry.box, drawn_box=True)


def add_background_points(
    components: Sequence[Component], background: Sequence[BackgroundPoint], shape: tuple[int, int]
) -> list[Component]:
    """The components, each background point in the prompt of the nearest one of its class, the smallest of several."""
    classes, nearest = {entry.class_id for entry in background}, dict[BackgroundPoint, tuple[float, int, int]]()
    for component in (x for x in components if x.class_id in classes):
        pixels = np.argwhere(rle_to_mask(component.rle, shape))
        for entry in (x for x in background if x.class_id == component.class_id):
            distance = np.hypot(*(pixels - entry.point[::-1]).T).min()
            claim = float(distance), len(pixels), component.number
            nearest[entry] = min(claim, nearest.get(entry, claim))
    points: dict[int, list[Point]] = {}
    for entry in background:
        if entry in nearest:
            points.setdefault(nearest[entry][-1], []).append(entry.point)
    return [replace(x, background_points=points.get(x.number)) for x in components]
