"""Checks of a data set before anything is computed, warnings, and the cost of a run."""

from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.label_png import Palette, read_image, write_label
from sesam.artifacts.manifest import SPLITS, ImageRecord, validate_record
from sesam.datasets.class_statistics import count_classes, suspicious_classes
from sesam.datasets.data_issues import (
    LEAKED,
    MISSING,
    NARROW,
    SIZES,
    UNFIT,
    UNREADABLE,
    VALUES,
    DataIssue,
    Issue,
    summarize_names,
)
from sesam.datasets.label_maps import LabelMap, absent_classes, class_bitmask, read_values
from sesam.datasets.layouts import ImagePair
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.params import ComponentParams, Params

MAX_ASPECT_RATIO = 64  # the smallest SAM works on 256 pixels
SIDES = 2  # components that a change of class bounds
RUN_BYTES = 2.8  # of a compressed run length, on average over the demo's masks
MASKS = 5  # kept per component: its own as the prompt, SAM's three, the selected one


class CheckResult(NamedTuple):
    """The result of checking an image and its label.

    classes: bit k is set if class k occurs. counts: see `count_classes`. components, edges: of the label, None if not
    counted; edges are places where the class changes from one row to the next.
    """

    record: ImageRecord | None
    issues: list[Issue]
    classes: int = 0
    counts: np.ndarray | None = None
    components: int | None = None
    edges: int | None = None


def check_pair(
    pair: ImagePair, counted: Set[str], folder: Path, label_map: LabelMap, palette: Palette, config: ComponentParams
) -> CheckResult:
    """Check an image and its label, and write the label to folder/ID.png as class ids. counted: see CheckResult."""
    image, issues = _try_read(read_image, pair.image)
    label = None
    if pair.label is not None:
        label, label_issues = _try_read(partial(read_values, label_map=label_map), pair.label)
        issues = issues + label_issues
    if issues or image is None:
        return CheckResult(None, issues)
    record = None
    try:
        record = _check_image(pair, image)
        if label is None:
            return CheckResult(record, [])
        ids = _check_label(pair, label, record, label_map)
    except DataIssue as problem:
        return CheckResult(record, [problem.issue])
    write_label(folder / f"{pair.id}.png", ids, palette)
    result = CheckResult(record, [], class_bitmask(ids), count_classes(ids, len(palette)))
    if pair.id not in counted:
        return result
    components = len(connected_regions(ids, config.connectivity, config.min_area))
    return result._replace(components=components, edges=int((ids[1:] != ids[:-1]).sum()))


def _try_read(read: Callable[[Path], np.ndarray], path: Path) -> tuple[np.ndarray | None, list[Issue]]:
    if not path.exists():
        return None, [(MISSING, str(path))]
    try:
        return read(path), []
    except SesamError as problem:
        return None, [(UNREADABLE, str(problem))]


def _check_image(pair: ImagePair, image: np.ndarray) -> ImageRecord:
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DataIssue(NARROW, f"{pair.image} has {width}x{height} pixels")
    fine = pair.label is not None
    try:
        return validate_record(ImageRecord(pair.id, str(pair.image), height, width, sha256(pair.image), fine))
    except ValueError:
        raise DataIssue(UNFIT, f"{str(pair.image)!r}, {width}x{height} pixels") from None


def _check_label(pair: ImagePair, label: np.ndarray, record: ImageRecord, label_map: LabelMap) -> np.ndarray:
    if label.shape[:2] != (record.height, record.width):
        size = f"{label.shape[1]}x{label.shape[0]}"
        raise DataIssue(SIZES, f"{pair.label} is {size}, {pair.image} {record.width}x{record.height} pixels")
    ids, unknown = label_map.class_ids(label)
    if unknown:
        raise DataIssue(VALUES, f"{pair.label}: {', '.join(unknown)}")
    return ids


def find_duplicates(records: dict[str, list[ImageRecord]]) -> tuple[list[Issue], list[str]]:
    """Images that occur twice, by their bytes: those in both splits, as issues, and those twice in train."""
    by_digest: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in SPLITS}
    for split in SPLITS:
        for record in records[split]:
            by_digest[split][record.sha256].append(record.image)
    leaked = [
        (LEAKED, f"{images[0]} and {by_digest['val'][digest][0]}")
        for digest, images in by_digest["train"].items()
        if digest in by_digest["val"]
    ]
    return leaked, [" and ".join(images) for images in by_digest["train"].values() if len(images) > 1]


def symlinked_dirs(root: Path, files: Sequence[Path]) -> list[str]:
    """The symlinked folders of the files below root. DVC follows a link at root itself, but not these."""
    parents = {file.parent for file in files}
    below_root = {folder for parent in parents for folder in (parent, *parent.parents) if root in folder.parents}
    return sorted(str(folder) for folder in below_root if folder.is_symlink())


def collect_warnings(
    results: Sequence[CheckResult], duplicates: list[str], symlinks: list[str], classes: Sequence[str], params: Params
) -> list[str]:
    """What is not an issue but should be known before hours are spent. results: of the training images."""
    warnings = []
    labeled = [(result.record, result.classes) for result in results if result.record and result.record.fine]
    if labeled and (absent := absent_classes((bitmask for _, bitmask in labeled), classes)):
        warnings.append(f"classes that never occur in the fine training labels: {summarize_names(absent)}.")
    counts = [result.counts for result in results if result.counts is not None]
    if counts and params.dataset.format == "folder":  # the values of the others are known
        warnings += suspicious_classes(np.stack(counts), classes)
    if empty := [record.id for record, bitmask in labeled if bitmask == 0]:
        warnings.append(f"training images whose fine label has no class: {summarize_names(empty)}.")
    if duplicates:
        warnings.append(f"duplicate training images: {summarize_names(duplicates)}.")
    if symlinks:
        warnings.append(
            f"symlinked folders inside dataset.root, {summarize_names(symlinks)}: `dvc repro` does not notice when "
            "their files change. Link the whole data set instead."
        )
    if (checkpoint := params.sam.checkpoint) and not Path(checkpoint).is_file():
        warnings.append(f"{checkpoint} (sam.checkpoint) is missing; `embed` will need it.")
    return warnings


def estimate_cost(results: Sequence[CheckResult], params: Params, embedding_bytes: int) -> list[str]:
    """Lines with the components, prompts and disk space of a run over these training images."""
    images, rounds = len(results), len(params.rounds)
    counted = [(r.components, r.edges) for r in results if r.components is not None and r.edges is not None]
    limit = f"kept up to runtime.embedding_cache_gb, {params.runtime.embedding_cache_gb:g}"
    total, each = _format_bytes(images * embedding_bytes), _format_bytes(embedding_bytes)
    lines = [f"{total} for SAM's embeddings ({images} of {each}; {limit})"]
    if counted:
        components, edges = (sum(column) / len(counted) for column in zip(*counted, strict=True))
        mask_bytes = images * edges * SIDES * RUN_BYTES * MASKS
        lines = [
            f"about {components:.0f} components per image, {images * components:.0f} SAM prompts per round, {rounds} "
            f"rounds (counted on the fine labels of {len(counted)} images; a poor teacher makes more)",
            *lines,
            f"about {_format_bytes(mask_bytes)} per round for prompts and masks",
        ]
    return lines


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
