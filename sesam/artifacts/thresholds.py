"""How confident a round's teacher must be of a class, where its predictions are used."""

from collections.abc import Sequence

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.manifest import ImageRecord, load_predictions
from sesam.errors import SesamError
from sesam.labels import class_thresholds, confident_labels
from sesam.params import Kind, Ratio, TeacherParams
from sesam.paths import round_dir

_THRESHOLDS = TypeAdapter(dict[str, Ratio])


def count_predictions(record: ImageRecord, round_name: str, num_classes: int) -> np.ndarray:
    """An image's pixels by predicted class and confidence, (K, 256) int, as `class_thresholds` takes them."""
    predicted, confidence = load_predictions(round_name, record, num_classes)
    known = predicted < num_classes  # 255: the round has no teacher
    pairs = predicted[known].astype(int) * 256 + confidence[known]
    return np.bincount(pairs, minlength=num_classes * 256).reshape(num_classes, 256)


def save_thresholds(round_name: str, classes: Sequence[str], counts: np.ndarray, config: TeacherParams) -> None:
    """Write each class's γ on images without annotation, which `counts` sums up, to the round's thresholds.json."""
    limits = class_thresholds(counts, config.confidence_threshold, config.min_class_fraction)
    write_json(round_dir(round_name, "thresholds.json"), dict(zip(classes, limits.tolist(), strict=True)))


def load_threshold(round_name: str, kind: Kind, classes: Sequence[str], config: TeacherParams) -> float | np.ndarray:
    """γ for an image, as `confident_labels` takes it: one of each class where the image has no annotation."""
    if kind != "none":
        return config.confidence_threshold
    path = round_dir(round_name, "thresholds.json")
    try:
        limits = _THRESHOLDS.validate_json(read_bytes(path), strict=True)
    except ValidationError:
        limits = {}
    if [*limits] != [*classes]:
        raise SesamError(f"{path} is damaged, or of other classes. Delete it and run `dvc repro`.")
    return np.array([*limits.values()])


def load_confident(
    round_name: str, record: ImageRecord, kind: Kind, classes: Sequence[str], config: TeacherParams
) -> tuple[np.ndarray, np.ndarray]:
    """Of a round's teacher the confident predictions, 255 elsewhere, and the confidence, both (H, W) uint8."""
    predicted, confidence = load_predictions(round_name, record, len(classes))
    return confident_labels(predicted, confidence, load_threshold(round_name, kind, classes, config)), confidence
