"""Checks of a data set before anything is computed, warnings, and the cost of a run."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.image_io import Palette, read_size, write_label
from sesam.artifacts.manifest import SPLITS, ImageRecord, validate_record
from sesam.datasets.class_statistics import count_classes, suspicious_classes
from sesam.datasets.data_issues import DataIssue, Issue, IssueKind, unknown_values
from sesam.datasets.label_maps import NO_COLORS, Colors, LabelMap, read_values
from sesam.datasets.layouts import ImagePair
from sesam.errors import SesamError, summarize_names
from sesam.geometry.regions import connected_regions
from sesam.labels import IGNORE_INDEX
from sesam.params import MAX_ASPECT_RATIO, ComponentParams, Params

Read = TypeVar("Read")
COMPONENTS_PER_EDGE = 2  # components that a change of class bounds
RUN_BYTES = 2.8  # of a compressed run length, on average over the demo's masks
MASKS_PER_COMPONENT = 5  # kept per component: its own as the prompt, SAM's three, the selected one


class CheckResult(NamedTuple):
    """The result of checking an image and its label, if it has one."""

    record: ImageRecord | None
    issues: list[Issue]
    counts: np.ndarray | None = None  # of `count_classes`
    load: tuple[int, int] | None = None  # components, and places where the class changes from one row to the next
    colors: Colors = NO_COLORS
    has_ignored: bool = False  # pixels without a class


def check_pair(
    pair: ImagePair, counted: Set[str], folder: Path, label_map: LabelMap, palette: Palette, config: ComponentParams
) -> CheckResult:
    """Check an image and its label, and write the label to folder/ID.png as class ids. counted: ids to have a load."""
    issues: list[Issue] = []
    found = _try_read(_size_and_digest, pair.image, issues)
    read = None if pair.label is None else _try_read(partial(read_values, label_map=label_map), pair.label, issues)
    if found is None or issues:
        return CheckResult(None, issues)
    record = None
    try:
        record = _check_image(pair, *found)
        if read is None:
            return CheckResult(record, [])
        ids = _check_label(pair, read[0], record, label_map)
    except DataIssue as problem:
        return CheckResult(record, [Issue(*problem.args)])
    write_label(folder / f"{pair.id}.png", ids, palette)
    load = None
    if pair.id in counted:
        components = connected_regions(ids, config.connectivity, config.min_area)
        load = len(components), int((ids[1:] != ids[:-1]).sum())
    return CheckResult(record, [], count_classes(ids, len(palette)), load, read[1], bool((ids == IGNORE_INDEX).any()))


def _try_read(read: Callable[[Path], Read], path: Path, issues: list[Issue]) -> Read | None:
    try:
        return read(path)
    except SesamError as problem:
        if path.exists():
            issues.append(Issue(IssueKind.UNREADABLE, str(problem)))
        else:
            other = _files_by_stem(path.parent).get(path.stem)
            issues.append(Issue(IssueKind.MISSING, f"{path}{f' (there is {other})' if other else ''}"))
        return None


@cache
def _files_by_stem(folder: Path) -> dict[str, str]:
    """The first file of each name without its ending; listed once, for a hundred thousand may be missing."""
    names = sorted((path.name for path in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return {Path(name).stem: name for name in names}


def _size_and_digest(path: Path) -> tuple[int, int, str]:
    content = read_bytes(path)
    return *read_size(path, content), hashlib.sha256(content).hexdigest()


def _check_image(pair: ImagePair, height: int, width: int, digest: str) -> ImageRecord:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DataIssue(IssueKind.NARROW, f"{pair.image} has {width}x{height} pixels")
    has_label = pair.label is not None
    try:
        return validate_record(ImageRecord(pair.id, str(pair.image), height, width, digest, has_label))
    except ValueError:
        raise DataIssue(IssueKind.UNFIT, f"{str(pair.image)!r}, {width}x{height} pixels") from None


def _check_label(pair: ImagePair, label: np.ndarray, record: ImageRecord, label_map: LabelMap) -> np.ndarray:
    if label.shape[:2] != (record.height, record.width):
        size = f"{label.shape[1]}x{label.shape[0]}"
        raise DataIssue(IssueKind.SIZES, f"{pair.label} is {size}, {pair.image} {record.width}x{record.height} pixels")
    ids, unknown = label_map.class_ids(label)
    if unknown:
        raise unknown_values(pair.label, unknown)
    return ids


def find_duplicates(records: dict[str, list[ImageRecord]]) -> tuple[list[Issue], list[str]]:
    """Images that occur twice, by their bytes: those in both splits, as issues, and those twice in train."""
    by_digest: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))  # of each split
    for k, split in enumerate(SPLITS):
        for record in records[split]:
            by_digest[record.sha256][k].append(record.image)
    leaked = [Issue(IssueKind.LEAKED, f"{train[0]} and {val[0]}") for train, val in by_digest.values() if train and val]
    return leaked, [" and ".join(train) for train, _ in by_digest.values() if len(train) > 1]


def symlinked_dirs(root: Path, files: Sequence[Path]) -> list[str]:
    """The symlinked folders of the files below root. DVC follows a link at root itself, but not these."""
    folders = {folder for parent in {file.parent for file in files} for folder in (parent, *parent.parents)}
    return sorted(str(folder) for folder in folders if root in folder.parents and folder.is_symlink())


def collect_warnings(
    results: Mapping[str, Sequence[CheckResult]],
    duplicates: list[str],
    symlinks: list[str],
    classes: Sequence[str],
    params: Params,
) -> list[str]:
    """What is not an issue but should be known before hours are spent. results: of each split."""
    checkpoint, warnings = params.sam.checkpoint, list[str]()
    for split, of_split in results.items():
        warnings += _class_warnings(split, of_split, classes, params.dataset.format)
    if duplicates:
        warnings.append(f"duplicate training images: {summarize_names(duplicates)}.")
    if symlinks:
        warnings.append(
            f"symlinked folders inside dataset.root, {summarize_names(symlinks)}: `dvc repro` does not notice when "
            "their files change. Link the whole data set instead."
        )
    if checkpoint and not Path(checkpoint).is_file():
        warnings.append(f"{checkpoint} (sam.checkpoint) is missing; `embed` will need it.")
    return warnings


def _class_warnings(
    split: str, results: Sequence[CheckResult], classes: Sequence[str], dataset_format: str
) -> list[str]:
    labeled = [(result.record.id, result.counts) for result in results if result.record and result.counts is not None]
    counts = np.reshape([counts for _, counts in labeled], (-1, 3, len(classes)))
    absent = list(compress(classes, counts[:, 0].sum(0) == 0)) if labeled else []
    listed = {
        f"classes that never occur in the fine labels of {split}": absent,
        f"images of {split} whose fine label has no class": [k for k, of_image in labeled if not of_image[0].any()],
    }
    warnings = [f"{subject}: {summarize_names(names)}." for subject, names in listed.items() if names]
    if dataset_format == "folder" and labeled:  # the values of the others are known
        warnings += [f"{split}: {text}" for text in suspicious_classes(counts, classes)]
    return warnings


def estimate_cost(results: Sequence[CheckResult], params: Params, embedding_bytes: int) -> list[str]:
    """Lines with the components, prompts and disk space of a run over these training images."""
    images, rounds = len(results), len(params.rounds)
    loads = [result.load for result in results if result.load is not None]
    limit = f"kept up to runtime.embedding_cache_gb, {params.runtime.embedding_cache_gb:g}"
    total, each = _format_bytes(images * embedding_bytes), _format_bytes(embedding_bytes)
    lines = [f"{total} for SAM's embeddings ({images} of {each}; {limit})"]
    if loads:
        components, edges = np.mean(loads, axis=0)
        prompts = (
            f"about {components:.0f} components per image, {images * components:.0f} SAM prompts per round, {rounds} "
            f"round{'s' * (rounds > 1)} (counted on the fine labels of {len(loads)} images; a poor teacher makes more)"
        )
        masks = _format_bytes(images * edges * COMPONENTS_PER_EDGE * RUN_BYTES * MASKS_PER_COMPONENT)
        lines = [prompts, *lines, f"about {masks} per round for prompts and masks"]
    return lines


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
