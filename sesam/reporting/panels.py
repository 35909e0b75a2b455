"""One page per image: the steps of the method side by side, and for `explain` each component with its candidates."""

import cv2
import numpy as np
from PIL import Image

from sesam.artifacts.component_records import Component
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label, load_image, load_label
from sesam.geometry.rle import rle_to_mask
from sesam.paths import METRICS
from sesam.reporting.layout import Step, compose_page, draw_outline, fade, fit_to_tile
from sesam.reporting.trace import ComponentTrace, ImageTrace, describe_outcome

KEPT_COLOR, REJECTED_COLOR, PROMPT_COLOR = (0, 150, 80), (200, 40, 40), (255, 220, 0)
BACKGROUND_COLOR = (255, 255, 255)  # of background points
MAX_ROWS = 40  # components on a page


def trace_page(trace: ImageTrace, with_components: bool = False) -> Image.Image:
    """The round's inputs and results; with_components: below a row per component, at most MAX_ROWS."""
    shown = trace.components[:MAX_ROWS] if with_components else []
    rows = [trace.inputs, trace.results, *(_component_row(trace.image, traced) for traced in shown)]
    return compose_page(rows, trace.manifest)


def val_page(round_name: str, record: ImageRecord, manifest: Manifest) -> Image.Image:
    """A validation image, its fine label, and the predictions of the baseline and the round's student, in a row."""
    num_classes = len(manifest.classes)
    row = [
        Step("image", "image", load_image(record)),
        Step("fine", "classes", load_fine_label("val", record, num_classes)),
    ]
    for title, network in (("baseline", "baseline"), (f"student {round_name}", round_name)):
        predicted = load_label(METRICS / "report_predictions" / network / "val", record, num_classes)
        row.append(Step(title, "classes", predicted))
    return compose_page([row], manifest)


def _component_row(image: np.ndarray, traced: ComponentTrace) -> list[Step]:
    component, outcome = traced.component, describe_outcome(traced).split(",")[0]
    row = [Step(f"{component.number} {traced.class_name}: {outcome}", "image", draw_prompt(image, component))]
    for k, (candidate, _, score, rejection) in enumerate(traced.candidates):
        mask = rle_to_mask(candidate.rle, image.shape[:2])
        picture = fit_to_tile(fade(image, ~mask))
        draw_outline(picture, mask, REJECTED_COLOR if rejection else KEPT_COLOR)
        kept = "kept: " if k == traced.selected.candidate_index else ""
        row.append(Step(f"{kept}score {score:.2f}, {rejection or 'fits'}", "image", picture))
    return row


def draw_prompt(image: np.ndarray, component: Component) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB at tile size, faded outside the component, with its prompt."""
    picture = fit_to_tile(fade(image, ~rle_to_mask(component.rle, image.shape[:2])))
    scale = picture.shape[0] / image.shape[0]
    points = [(point, PROMPT_COLOR) for point in component.points or ()]
    points += [(point, BACKGROUND_COLOR) for point in component.background_points or ()]
    for (x, y), color in points:
        center = (round((x + 0.5) * scale), round((y + 0.5) * scale))
        cv2.circle(picture, center, 7, (30, 30, 30), cv2.FILLED)
        cv2.circle(picture, center, 5, color, cv2.FILLED)
    for box in (*filter(None, [component.box]), *(component.exemplars or ())):
        left, top, right, bottom = (round(side * scale) for side in box)
        cv2.rectangle(picture, (left, top), (right, bottom), PROMPT_COLOR, 3)
    return picture
