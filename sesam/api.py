"""The method for one image, without the pipeline: arrays in, arrays out.

import sesam

sam_model = sesam.load_sam("bundled")
result = sesam.pseudo_label(image, weak_label, sam_model, params={"sampling": {"num_points": 7}})
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.component_records import Candidate, Component, Selected
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.merging import merge_labels
from sesam.params import MAX_ASPECT_RATIO, Params, validate_params
from sesam.prompting import image_prompts
from sesam.sam.inference import component_prompts, load_sam_from_params, to_candidates
from sesam.sam.sam_model import SamModel
from sesam.selection import select_candidate, weak_masks_by_class


class PseudoLabel(NamedTuple):
    """An image's pseudo-label and how it was made.

    labels: (H, W) uint8 class ids, 255 = unlabeled. sources: (H, W) uint8, 0 none, 1 weak label, 2 SAM, 3 confident
    prediction. components, candidates, selected: per component its prompt, SAM's masks (COCO run lengths) by component
    number, and the mask that was selected or why none was.
    """

    labels: np.ndarray
    sources: np.ndarray
    components: list[Component]
    candidates: dict[int, list[Candidate]]
    selected: list[Selected]


def load_sam(model: str = "bundled", checkpoint: Path | str | None = None, device: str = "auto") -> SamModel:
    """A SAM that `pseudo_label` takes, in float32; published weights are downloaded once.

    model: bundled, vit_b, vit_l, vit_h, superpixels …, as `sam.model` in params.yaml. checkpoint: a file of custom
    weights. device: auto, cpu or cuda. SesamError if it cannot be loaded.
    """
    sam = {"model": model, "dtype": "float32"}
    sampling = {"prompt_type": "concept"} if model == "sam3" else {}  # it takes nothing else
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise SesamError(f"{checkpoint} is not a file.")
        sam |= {"checkpoint": str(checkpoint), "sha256": sha256(Path(checkpoint))}
    return load_sam_from_params(_params({"sam": sam, "sampling": sampling, "runtime": {"device": device}}))


def pseudo_label(
    image: np.ndarray,
    weak_label: np.ndarray,
    sam_model: SamModel,
    *,
    params: Params | Mapping[str, Any] | None = None,
    predictions: tuple[np.ndarray, np.ndarray] | None = None,
    round_name: str = "r1",
    image_id: str = "image",
) -> PseudoLabel:
    """The pseudo-label of one image (steps 0 to 5 of the method; docs/explanation/method.md).

    image: (H, W, 3) uint8 RGB. weak_label: (H, W) uint8 class ids, 255 = unlabeled. sam_model: see `load_sam`.
    params: the groups and keys of params.yaml that differ from the defaults. predictions: a teacher's classes and
    confidence (255 times the softmax maximum), both (H, W) uint8; None: no teacher. round_name and image_id seed the
    sampling of points: with those of a pipeline the result is the pipeline's.

    SesamError for arrays that do not fit together and for wrong params.
    """
    checked = params if isinstance(params, Params) else _params(params or {})
    checked.check_round(round_name)
    shape = weak_label.shape
    if predictions is not None and len(predictions) != 2:
        raise SesamError("predictions are a pair: classes and confidence.")
    predicted, confidence = predictions or (np.full(shape, IGNORE_INDEX, np.uint8), np.zeros(shape, np.uint8))
    _check_arrays(image, weak_label, predicted, confidence)
    takes_concepts = getattr(sam_model, "takes_concepts", False)
    if takes_concepts != (checked.sampling.prompt_type == "concept"):
        taken = "concepts alone" if takes_concepts else "no concepts"
        raise SesamError(f"This SAM takes {taken}; sampling.prompt_type is {checked.sampling.prompt_type}.")
    classes = checked.dataset.classes if isinstance(params, Params) or "dataset" in (params or {}) else None
    if checked.sampling.prompt_type == "concept":
        _check_names(classes or [], weak_label)
    key = round_name, image_id
    confident = confident_labels(predicted, confidence, checked.teacher.confidence_threshold)
    components = image_prompts(weak_label, confident, confidence, checked, key, classes=classes or ())
    candidates: dict[int, list[Candidate]] = {}
    if components:
        embeddings, size = sam_model.encode([sam_model.preprocess(image)]), image.shape[:2]
        (masks,) = sam_model.decode(embeddings, [size], [component_prompts(components)])
        candidates = {c.number: to_candidates(m, size) for c, m in zip(components, masks, strict=True)}
    weak_masks = weak_masks_by_class(weak_label)
    selected = [select_candidate(c, candidates[c.number], weak_masks, checked.selection)[0] for c in components]
    if not checked.rounds[round_name].fill_confident:
        confident = np.full_like(weak_label, IGNORE_INDEX)
    merged = merge_labels(image, weak_label, confident, components, selected)
    return PseudoLabel(*merged, components, candidates, selected)


def _check_arrays(image: np.ndarray, weak_label: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> None:
    shape = weak_label.shape
    for name, array, expected in (
        ("image", image, (*shape[:2], 3)),
        ("weak_label", weak_label, shape[:2]),
        ("predictions", predicted, shape),
        ("predictions", confidence, shape),
    ):
        if array.shape != expected or array.dtype != np.uint8:
            raise SesamError(f"{name} is {array.shape} {array.dtype}; expected {expected} uint8.")
    if max(shape) > MAX_ASPECT_RATIO * min(shape):
        raise SesamError(f"image has {shape[1]}x{shape[0]} pixels, which is too narrow for SAM. Cut it into parts.")


def _check_names(classes: Sequence[str], weak_label: np.ndarray) -> None:
    if not classes or weak_label[weak_label != IGNORE_INDEX].max(initial=0) >= len(classes):
        raise SesamError(
            f"Concepts are the names of the classes, and the params have {len(classes)} names. Give those of all "
            "classes in weak_label: params={'dataset': {'classes': [...]}, ...}."
        )


def _params(groups: Mapping[str, Any]) -> Params:
    """The defaults with these groups; the class names, which only concepts use, are any."""
    return validate_params({"dataset": {"classes": ["0", "1"]}, **groups}, Path("params"))
