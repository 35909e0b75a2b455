"""One image's way through a round: its steps as maps, its components with their candidates, and both in sentences."""

from typing import NamedTuple

import numpy as np

from sesam.artifacts.component_records import Component, Outcome, Selected, read_candidates, read_prompts, read_selected
from sesam.artifacts.drawn_prompts import read_drawn_prompts
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label, load_image, load_label, load_predictions
from sesam.artifacts.sources import CONFIDENT, FINE, SAM, SOURCE_TITLES, WEAK, load_pseudo_label
from sesam.artifacts.supervision import load_supervision
from sesam.artifacts.thresholds import load_threshold
from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX
from sesam.merging import PREDICTED, claim_strength, path_costs
from sesam.params import NO_TEACHER, Params, SelectionParams
from sesam.paths import METRICS, WEAK_LABELS, round_dir
from sesam.reporting.layout import Step, overlay_boxes, overlay_masks
from sesam.selection import ScoredCandidate, select_candidate, weak_masks_by_class


class ComponentTrace(NamedTuple):
    """A component, its candidates with their scores, and the selected mask."""

    component: Component
    class_name: str
    candidates: list[ScoredCandidate]
    selected: Selected

    @property
    def title(self) -> str:
        return f"{self.component.number} ({self.class_name})"


class ImageTrace(NamedTuple):
    """All that a round made of a training image.

    image: (H, W, 3) uint8 RGB. weak, pseudo_label, sources: (H, W) uint8. inputs: what the round starts from; results:
    what it made of them.
    """

    record: ImageRecord
    round_name: str
    manifest: Manifest
    params: Params
    image: np.ndarray
    weak: np.ndarray
    pseudo_label: np.ndarray
    sources: np.ndarray
    components: list[ComponentTrace]
    inputs: list[Step]
    results: list[Step]


def load_trace(
    record: ImageRecord, round_name: str, manifest: Manifest, params: Params, with_student: bool = False
) -> ImageTrace:
    """A training image's round from its artifacts; SesamError if one is missing or was made with other params."""
    num_classes = len(manifest.classes)
    image, weak = load_image(record), load_label(WEAK_LABELS, record, num_classes)
    pseudo_label, sources = load_pseudo_label(round_name, record, num_classes)
    components = _load_components(record, round_name, manifest, params.selection, weak)
    inputs, results = [Step("image", "image", image)], []
    if record.has_fine_label:
        inputs.append(Step("fine", "classes", load_fine_label("train", record, num_classes)))
    inputs.append(Step("weak", "classes", weak))
    if boxes := read_drawn_prompts(WEAK_LABELS, record, num_classes).boxes:
        inputs.append(Step("boxes", "classes", overlay_boxes(image, boxes, manifest.palette)))
    if params.rounds[round_name].teacher != NO_TEACHER:
        limits = _thresholds(record, round_name, manifest, params)
        inputs += _network_steps("teacher", *load_predictions(round_name, record, num_classes), limits)
    if params.sam.enabled:
        masks = overlay_masks(image, [component.selected for component in components], manifest.palette)
        results.append(Step("SAM's masks", "classes", masks))
    results += [Step("pseudo-label", "classes", pseudo_label), Step("source", "sources", sources)]
    if with_student:
        shown = METRICS / "report_predictions" / round_name
        labels, confidence = shown / "train", shown / "confidence"
        predicted = load_label(labels, record, num_classes), load_label(confidence, record)
        results += _network_steps("student", *predicted, params.teacher.confidence_threshold)
    return ImageTrace(
        record, round_name, manifest, params, image, weak, pseudo_label, sources, components, inputs, results
    )


def _network_steps(
    network: str, labels: np.ndarray, confidence: np.ndarray, threshold: float | np.ndarray
) -> list[Step]:
    title = f"{network}'s confidence"
    return [Step(network, "classes", labels, confidence, threshold), Step(title, "confidence", confidence)]


def _thresholds(record: ImageRecord, round_name: str, manifest: Manifest, params: Params) -> float | np.ndarray:
    """γ in this image, as `confident_labels` takes it."""
    kind = load_supervision(manifest.train)[record.id]
    return load_threshold(round_name, kind, manifest.classes, params.teacher)


def _load_components(
    record: ImageRecord, round_name: str, manifest: Manifest, selection: SelectionParams, weak: np.ndarray
) -> list[ComponentTrace]:
    file, num_classes = f"{record.id}.json", len(manifest.classes)
    prompts = read_prompts(round_dir(round_name, "prompts") / file, record, num_classes)
    candidates = read_candidates(round_dir(round_name, "masks") / file, record, prompts)
    path = round_dir(round_name, "selected") / file
    components, weak_masks = [], weak_masks_by_class(weak)
    for component, on_disk in zip(prompts, read_selected(path, record, num_classes, prompts), strict=True):
        selected, scored = select_candidate(component, candidates[component.number], weak_masks, selection)
        if selected != on_disk:
            raise SesamError(
                f"{path}: the mask of component {component.number} was selected by other params than those of "
                "`selection` now. Run `dvc repro`."
            )
        components.append(ComponentTrace(component, manifest.classes[component.class_id], scored, selected))
    return components


def describe_candidate(scored: ScoredCandidate, selection: SelectionParams) -> str:
    """A candidate's predicted IoU, its coverage, its score, and whether it fits."""
    candidate, coverage, score, rejection = scored
    if coverage.anywhere:
        found = "fits, as no pixel of its class is labeled" if rejection is None else f"found nothing, {rejection}"
        return f"score {score:.2f}: {found}"
    text = f"score {score:.2f}: predicted IoU {candidate.predicted_iou:.2f}, covers {coverage.ratio:.0%} of "
    if coverage.fills_box:
        text += "the annotators' box, to which it is cut"
    elif coverage.labeled:
        text += "annotators' pixels of the component"
    else:
        text += f"the component, which is {coverage.covered / max(1, coverage.area):.0%} of the mask"
    if rejection is None:
        return f"{text}: fits"
    limit = {
        Outcome.LOW_COVERAGE: f"at least {selection.min_coverage:.0%} must be covered, selection.min_coverage",
        Outcome.OVERSIZED: f"at least {selection.min_mask_precision:.0%} must be, selection.min_mask_precision",
    }[rejection]
    return f"{text}: rejected, {rejection} ({limit})"


def describe_outcome(component: ComponentTrace) -> str:
    """What became of a component."""
    reasons = [scored.rejection for scored in component.candidates]
    if component.selected.candidate_index is None:
        return f"no mask kept ({', '.join(sorted({reason for reason in reasons if reason}))})"
    fitting = reasons.count(None)
    others = f", of {fitting} that fit the one with the highest score" if fitting > 1 else ""
    return f"mask {component.selected.candidate_index + 1} kept{others}"


def list_components(trace: ImageTrace) -> list[str]:
    """Every component and candidate, one line each."""
    lines = []
    for traced in trace.components:
        component = traced.component
        prompt = f"{len(component.points)} points" if component.points else component.concept or component.prompt_type
        prompt += f" and {len(component.background_points)} of the background" if component.background_points else ""
        size = f"{rle_to_mask(component.rle, trace.pseudo_label.shape).sum()} pixels"
        title = f"{component.number} {traced.class_name}, {size}, prompted with {prompt}"
        lines.append(f"{title}: {describe_outcome(traced)}")
        for k, scored in enumerate(traced.candidates, 1):
            lines.append(f"    mask {k}: {describe_candidate(scored, trace.params.selection)}")
    return lines


def explain_pixel(trace: ImageTrace, x: int, y: int) -> list[str]:
    """Why a pixel has its label, in sentences, then its class in each step."""

    def class_name(label: int) -> str:
        return "no class" if label == IGNORE_INDEX else trace.manifest.classes[label]

    source, pixel = trace.sources[y, x], f"Pixel ({x}, {y}) of {trace.record.id}, round {trace.round_name}"
    lines = [f"{pixel}: {class_name(trace.pseudo_label[y, x])}, from {SOURCE_TITLES[source]}."]
    if source == WEAK:
        lines.append("An annotator labeled it, and weak labels are never overwritten.")
    elif source == FINE:
        lines.append("The image has a fine label, so SAM was not asked.")
    elif source == SAM:
        lines += _explain_masks(trace, x, y)
    elif source == CONFIDENT:
        limits = _thresholds(trace.record, trace.round_name, trace.manifest, trace.params)
        gamma = np.broadcast_to(limits, len(trace.manifest.classes))[trace.pseudo_label[y, x]]
        lines.append(f"No kept mask holds it; the teacher's confidence reaches γ, {gamma:.3g}.")
    else:
        lines += _explain_unlabeled(trace, x, y)
    for step in (*trace.inputs, *trace.results):
        if step.kind == "classes" and step.values.ndim == 2:
            confidence = "" if step.confidence is None else f", confidence {step.confidence[y, x] / 255:.2f}"
            lines.append(f"{step.name}: {class_name(step.values[y, x])}{confidence}")
    return lines


def _explain_masks(trace: ImageTrace, x: int, y: int) -> list[str]:
    """Which kept masks hold a pixel, how strongly each claims it, and why that of the strongest claim was kept."""
    claims, paths = [], path_costs(trace.image)
    for traced in trace.components:
        if traced.selected.kept:
            window, strength = claim_strength(traced.component, traced.selected, paths, trace.weak)
            everywhere = np.full(trace.pseudo_label.shape, -np.inf)
            everywhere[window] = strength
            if np.isfinite(everywhere[y, x]):
                claims.append((float(everywhere[y, x]), traced))
    if not claims:
        raise SesamError(f"The label of {trace.record.id} is older than its selected masks. Run `dvc repro`.")
    (strongest, top), *others = sorted(claims, key=lambda pair: -pair[0])
    mask = describe_candidate(top.candidates[top.selected.candidate_index or 0], trace.params.selection)
    lines = [f"The mask that was kept of component {top.title} holds it: {mask}."]
    if others:
        weaker = ", ".join(f"{traced.title} {strength:.3f}" for strength, traced in others)
        lines.append(
            "Its claim, score / √(1 + distance through the mask to its weak labels; "
            f"{PREDICTED:g} more if it has none), is {strongest:.3f}; other masks that hold it: {weaker}."
        )
    return lines


def _explain_unlabeled(trace: ImageTrace, x: int, y: int) -> list[str]:
    """Which components without a kept mask, and which rejected masks hold a pixel."""
    lines = ["No annotator labeled it and no kept mask holds it."]
    shape, without = (
        trace.pseudo_label.shape,
        [component for component in trace.components if not component.selected.kept],
    )
    for component in without:
        if rle_to_mask(component.component.rle, shape)[y, x]:
            lines.append(f"It is in component {component.title}: {describe_outcome(component)}.")
    for component in without:
        if any(rle_to_mask(scored.candidate.rle, shape)[y, x] for scored in component.candidates):
            lines.append(f"A rejected mask of component {component.title} holds it.")
    return lines
