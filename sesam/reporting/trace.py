"""One image's way through a round, as records, sentences and pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from sesam.artifacts.component_records import read_candidates, read_prompts, read_selected
from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label, load_image, load_label, load_predictions
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, SOURCE_NAMES, SOURCE_PALETTE, WEAK, load_pseudo_label
from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_mask, to_coco_rle
from sesam.labels import IGNORE_INDEX
from sesam.params import NO_TEACHER, Params, SelectionParams
from sesam.paths import WEAK_LABELS, round_dir
from sesam.reporting.pages import Tile, class_legend, colorize, compose_page, fade, fit_to_tile, overlay_masks
from sesam.selection import CONFLICT, MISSED, Coverage, measure_coverage, rejection_reason, weak_rles

KEPT_COLOR, REFUSED_COLOR, PROMPT_COLOR = (0, 150, 80), (200, 40, 40), (255, 220, 0)


MAX_ROWS = 40  # components on a page


class Candidate(NamedTuple):
    """One of SAM's masks for a component. why: it was refused; None: it fits."""

    iou: float
    rle: str
    shape: tuple[int, int]
    found: Coverage
    why: str | None

    @property
    def mask(self) -> np.ndarray:
        return rle_to_mask(self.rle, self.shape)  # not kept: there may be thousands


class Component(NamedTuple):
    """A component with its candidates; kept: which of them, or None."""

    number: int
    name: str
    shape: tuple[int, int]
    prompt: dict[str, Any]
    candidates: list[Candidate]
    kept: int | None

    @property
    def mask(self) -> np.ndarray:
        return rle_to_mask(self.prompt["rle"], self.shape)


class ImageTrace(NamedTuple):
    """All that a round made of an image; maps are (H, W) uint8. predicted: None without a teacher."""

    item: ImageRecord
    image: np.ndarray
    fine: np.ndarray
    weak: np.ndarray
    predicted: np.ndarray | None
    confidence: np.ndarray
    merged: np.ndarray
    sources: np.ndarray
    selected: list[dict[str, Any]]
    components: list[Component]


def load_trace(item: ImageRecord, name: str, data: Dataset, params: Params) -> ImageTrace:
    """What lies on the disk of an image's round; SesamError if something of it is missing, or other params made it."""
    classes = len(data.classes)
    prompts = read_prompts(round_dir(name, "prompts") / f"{item.id}.json", item, classes)["components"]
    offered = read_candidates(round_dir(name, "masks") / f"{item.id}.json", item, prompts)
    path = round_dir(name, "selected") / f"{item.id}.json"
    selected = read_selected(path, item, classes)
    kept = {one["number"]: one["candidate"] for one in selected}
    if kept.keys() != offered.keys():
        raise SesamError(f"{item.id}: other components were selected than were prompted. Run `dvc repro`.")
    weak, shape = load_label(WEAK_LABELS, item, classes), (item.height, item.width)
    masks = weak_rles(weak)
    components = []
    for prompt in prompts:
        own, number = to_coco_rle(prompt["rle"], shape), prompt["number"]
        candidates = []
        for one in offered[number]:
            found = measure_coverage(to_coco_rle(one["rle"], shape), own, prompt["class"], masks)
            candidates.append(
                Candidate(one["iou"], one["rle"], shape, found, rejection_reason(found, params.selection))
            )
        fitting = [k for k, one in enumerate(candidates) if one.why is None]
        if kept[number] != max(fitting, key=lambda k: candidates[k].iou, default=None):
            raise SesamError(
                f"{path}: the mask of component {number} was selected by other params than those of `selection` now. "
                "Run `dvc repro`."
            )
        name_of = data.classes[prompt["class"]]
        components.append(Component(number, name_of, shape, prompt, candidates, kept[number]))
    predicted, confidence = load_predictions(name, item, classes)
    return ImageTrace(
        item,
        load_image(item),
        load_fine_label("train", item, classes),
        weak,
        None if params.rounds[name].teacher == NO_TEACHER else predicted,
        confidence,
        *load_pseudo_label(name, item, classes),
        selected,
        components,
    )


def describe_candidate(candidate: Candidate, selection: SelectionParams) -> str:
    """A candidate's predicted IoU, its shares, and whether it fits."""
    found = candidate.found
    witness = "annotators' pixels of the component" if found.labeled else "the component"
    said = f"predicted IoU {candidate.iou:.2f}, holds {found.covered / max(1, found.of):.0%} of {witness}"
    if found.labeled:
        said += f"; {found.foreign / max(1, found.inside):.0%} of the annotators' pixels in it are of another class"
    else:
        said += f", which is {found.covered / max(1, found.area):.0%} of the mask"
    if candidate.why is None:
        return f"{said}: fits"
    least = {
        MISSED: f"at least {selection.tau_weak:.0%} must be held, selection.tau_weak",
        CONFLICT: f"at most {selection.max_conflict:.0%} may be, selection.max_conflict",
    }.get(candidate.why, f"at least {selection.tau_mask:.0%} must be, selection.tau_mask")
    return f"{said}: refused, {candidate.why} ({least})"


def describe_outcome(component: Component) -> str:
    """What became of a component."""
    if component.kept is None:
        reasons = sorted({one.why for one in component.candidates if one.why is not None})
        return f"no mask kept ({', '.join(reasons)})"
    fit = sum(one.why is None for one in component.candidates)
    return f"mask {component.kept + 1} kept" + (
        f", of {fit} that fit the one with the highest predicted IoU" if fit > 1 else ""
    )


def list_components(found: ImageTrace, selection: SelectionParams) -> list[str]:
    """Every component and candidate, a line each."""
    lines = []
    for one in found.components:
        prompt = (
            f"{len(one.prompt['points'])} points"
            if "points" in one.prompt
            else "box"
            if "box" in one.prompt
            else "mask"
        )
        lines.append(
            f"{one.number} {one.name}, {int(one.mask.sum())} pixels, prompted with {prompt}: {describe_outcome(one)}"
        )
        lines += [f"    mask {k}: {describe_candidate(mask, selection)}" for k, mask in enumerate(one.candidates, 1)]
    return lines


def explain_pixel(found: ImageTrace, x: int, y: int, data: Dataset, params: Params, name: str) -> list[str]:
    """Why a pixel has its label, in sentences."""

    def named(k: int) -> str:
        return "no class" if k == IGNORE_INDEX else data.classes[k]

    label, source = int(found.merged[y, x]), int(found.sources[y, x])
    kept = [one for one in found.components if one.kept is not None and one.candidates[one.kept].mask[y, x]]
    kept.reverse()  # of masks of one size the last is painted last
    kept.sort(key=lambda one: one.candidates[one.kept or 0].found.area)
    lines = [f"Pixel ({x}, {y}) of {found.item.id}, round {name}: {named(label)}, from {SOURCE_NAMES[source]}."]
    if source == WEAK:
        lines.append("An annotator labeled it, and weak labels are never overwritten.")
    elif source == SAM:
        if not kept:
            raise SesamError(f"The label of {found.item.id} is older than its selected masks. Run `dvc repro`.")
        top = kept[0]
        mask = top.candidates[top.kept or 0]
        said = describe_candidate(mask, params.selection)
        lines.append(f"The mask that was kept of component {top.number} ({top.name}) holds it: {said}.")
        if len(kept) > 1:
            others = ", ".join(f"{one.number} ({one.name})" for one in kept[1:])
            lines.append(f"The masks of components {others} hold it too; the smallest mask lies on top.")
    elif source == CONFIDENT:
        lines.append(
            f"No kept mask holds it; the teacher's confidence reaches γ, {params.teacher_labels.confidence_threshold:g}."
        )
    if source == NONE:
        near = [one for one in found.components if one.kept is None and one.mask[y, x]]
        lines.append("No annotator labeled it and no kept mask holds it.")
        lines += [f"It is in component {one.number} ({one.name}): {describe_outcome(one)}." for one in near]
        refused = [one for one in found.components if one.kept is None and any(c.mask[y, x] for c in one.candidates)]
        lines += [f"A refused mask of component {one.number} ({one.name}) holds it." for one in refused]
    if found.predicted is not None:
        lines.append(
            f"The teacher says {named(int(found.predicted[y, x]))}, confidence {found.confidence[y, x] / 255:.2f}."
        )
    if found.item.fine:
        lines.append(f"The fine label says {named(int(found.fine[y, x]))}.")
    return lines


def draw_outline(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], width: int = 2) -> None:
    """Draw a mask's outline on a picture (h, w, 3) uint8 of another size."""
    scaled = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(scaled, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, color, width)


def draw_prompt(found: ImageTrace, component: Component) -> np.ndarray:
    """The image, faded outside the component, with its prompt."""
    picture = fit_to_tile(fade(found.image, ~component.mask)).copy()
    scale = picture.shape[0] / found.item.height
    for x, y in component.prompt.get("points", ()):
        center = (round((x + 0.5) * scale), round((y + 0.5) * scale))
        cv2.circle(picture, center, 7, (30, 30, 30), cv2.FILLED)
        cv2.circle(picture, center, 5, PROMPT_COLOR, cv2.FILLED)
    if "box" in component.prompt:
        left, top, right, bottom = (round(side * scale) for side in component.prompt["box"])
        cv2.rectangle(picture, (left, top), (right, bottom), PROMPT_COLOR, 3)
    return picture


def draw_candidate(found: ImageTrace, candidate: Candidate) -> np.ndarray:
    """The image, faded outside the candidate, outlined by whether it fits."""
    mask = candidate.mask
    picture = fit_to_tile(fade(found.image, ~mask)).copy()
    draw_outline(picture, mask, KEPT_COLOR if candidate.why is None else REFUSED_COLOR)
    return picture


def draw_trace(found: ImageTrace, data: Dataset) -> Any:
    """The page: what the round made of the image, and below a row for each component, at most MOST_ROWS."""
    palette = data.palette
    rows = [
        [
            Tile("image", found.image),
            Tile("weak label", colorize(found.weak, palette)),
            Tile("SAM's masks", overlay_masks(found.image, found.selected, palette)),
            Tile("merged label", colorize(found.merged, palette)),
        ],
        [
            Tile("fine label", colorize(found.fine, palette)),
            Tile("label source", colorize(found.sources, SOURCE_PALETTE)),
        ],
    ]
    if found.predicted is not None:
        rows[1].append(Tile("teacher", colorize(found.predicted, palette)))
        rows[1].append(Tile("its confidence", np.repeat(found.confidence[..., None], 3, axis=2)))
    for one in found.components[:MAX_ROWS]:
        row = [Tile(f"{one.number} {one.name}: {describe_outcome(one).split(',')[0]}", draw_prompt(found, one))]
        for k, candidate in enumerate(one.candidates):
            title = f"{'kept: ' if k == one.kept else ''}IoU {candidate.iou:.2f}, {candidate.why or 'fits'}"
            row.append(Tile(title, draw_candidate(found, candidate)))
        rows.append(row)
    sources = dict(zip(SOURCE_NAMES, SOURCE_PALETTE, strict=True))
    return compose_page(rows, [class_legend([found.fine, found.weak, found.merged], data.classes, palette), sources])
