"""Checks of a data set before anything is computed, and the cost of a run."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import ceil
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
    NAMES,
    NARROW,
    SIZES,
    UNFIT,
    UNREADABLE,
    VALUES,
    Issue,
    format_issues,
    summarize_names,
)
from sesam.datasets.label_maps import LabelMap, absent_classes, class_bitmask, read_values
from sesam.datasets.layouts import Pair, find_pairs
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.params import ComponentParams, DatasetParams, Params
from sesam.seeds import seed_of

MAX_ASPECT_RATIO = 64  # times as long as wide; the smallest SAM works on 256 pixels


MAX_COUNTED = 100  # training images whose components are counted, to estimate those of all


SIDES = 2  # components that a change of class bounds


RUN_BYTES = 2.8  # of a compressed run length, on average over the demo's masks


MASKS = 5  # kept of a component: its own as the prompt, SAM's three, the selected one


class CheckResult(NamedTuple):
    """What one image and its label turned out to be.

    classes: bit k is set if class k occurs. counts: see `count_classes`. components, edges: how many the label has, or
    None if not counted; edges are places where the class changes from one row to the next.
    """

    item: ImageRecord | None
    faults: list[Issue]
    classes: int = 0
    counts: np.ndarray | None = None
    components: int | None = None
    edges: int | None = None


def choose_subset(pairs: Sequence[Pair], subset: float | list[str] | None) -> list[Pair]:
    """The training images of an annotation budget: a share of them, rounded up, or those listed.

    A smaller share is part of every larger one, and the same for every seed. SesamError for an id that is unknown.
    """
    if subset is None:
        return list(pairs)
    if isinstance(subset, list):
        chosen = set(subset)
        if unknown := chosen - {pair.id for pair in pairs}:
            raise SesamError(
                f"params.yaml: dataset.subset lists {len(unknown)} images that are not in the training splits: "
                f"{', '.join(sorted(unknown)[:5])}. An image of this data set is called {pairs[0].id}."
            )
    else:
        drawn = sorted(pairs, key=lambda pair: seed_of("subset", pair.id))
        chosen = {pair.id for pair in drawn[: ceil(subset * len(pairs) - 1e-9)]}
    return [pair for pair in pairs if pair.id in chosen]


def check_pair(
    pair: Pair, counted: frozenset[str], folder: Path, meaning: LabelMap, palette: Palette, config: ComponentParams
) -> CheckResult:
    """Check an image and its label, and write the label to folder/ID.png as class ids."""
    image, faults = _try_read(read_image, pair.image)
    label = None
    if pair.label is not None:
        label, more = _try_read(partial(read_values, meaning=meaning), pair.label)
        faults = faults + more
    if faults or image is None:
        return CheckResult(None, faults)
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        return CheckResult(None, [(NARROW, f"{pair.image} has {width}x{height} pixels")])
    try:
        item = validate_record(
            ImageRecord(pair.id, str(pair.image), height, width, sha256(pair.image), fine=label is not None)
        )
    except ValueError:
        return CheckResult(None, [(UNFIT, f"{str(pair.image)!r}, {width}x{height} pixels")])
    if label is None:
        return CheckResult(item, [])
    if label.shape[:2] != (height, width):
        sizes = f"{pair.label} is {label.shape[1]}x{label.shape[0]}, {pair.image} {width}x{height} pixels"
        return CheckResult(item, [(SIZES, sizes)])
    ids, strange = meaning.class_ids(label)
    if strange:
        return CheckResult(item, [(VALUES, f"{pair.label}: {', '.join(strange)}")])
    write_label(folder / f"{pair.id}.png", ids, palette)
    counts = count_classes(ids, len(palette))
    if pair.id not in counted:
        return CheckResult(item, [], class_bitmask(ids), counts)
    edges = int((ids[1:] != ids[:-1]).sum())
    return CheckResult(
        item, [], class_bitmask(ids), counts, len(connected_regions(ids, config.connectivity, config.min_area)), edges
    )


def _try_read(read: Callable[[Path], np.ndarray], path: Path) -> tuple[np.ndarray | None, list[Issue]]:
    if not path.exists():
        return None, [(MISSING, str(path))]
    try:
        return read(path), []
    except SesamError as problem:
        return None, [(UNREADABLE, str(problem))]


def find_duplicates(items: dict[str, list[ImageRecord]]) -> tuple[list[Issue], list[str]]:
    """Images that occur twice, by their bytes: those in both splits, as faults, and those twice in train."""
    named: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in SPLITS}
    for split in SPLITS:
        for item in items[split]:
            named[split][item.sha256].append(item.image)
    leaked = [
        (LEAKED, f"{images[0]} and {named['val'][digest][0]}")
        for digest, images in named["train"].items()
        if digest in named["val"]
    ]
    return leaked, [" and ".join(images) for images in named["train"].values() if len(images) > 1]


def symlinked_dirs(root: Path, files: Sequence[Path]) -> list[str]:
    """Folders of the files below root that are links. DVC looks behind root itself, but not behind these."""
    folders = {file.parent for file in files}
    above = {folder for one in folders for folder in (one, *one.parents) if root in folder.parents}
    return sorted(str(folder) for folder in above if folder.is_symlink())


def collect_warnings(
    found: Sequence[CheckResult], twice: list[str], classes: Sequence[str], behind: list[str], params: Params
) -> list[str]:
    """What is no fault but should be known before hours are spent."""
    lines = []
    with_label = [(one.item, one.classes) for one in found if one.item is not None and one.item.fine]
    if with_label and (never := absent_classes((occur for _, occur in with_label), classes)):
        lines.append(f"classes that never occur in the fine training labels: {summarize_names(never)}.")
    counts = [one.counts for one in found if one.counts is not None]
    if counts and params.dataset.format == "folder":  # the values of the others are known
        lines += suspicious_classes(np.stack(counts), classes)
    if empty := [item.id for item, occur in with_label if occur == 0]:
        lines.append(f"training images whose fine label has no class: {summarize_names(empty)}.")
    if twice:
        lines.append(f"training images that are there twice: {summarize_names(twice)}.")
    if behind:
        lines.append(
            f"links to folders inside dataset.root, {summarize_names(behind)}: `dvc repro` will not notice "
            "when what is behind them changes. Better link the whole data set."
        )
    if (checkpoint := params.sam.checkpoint) and not Path(checkpoint).is_file():
        lines.append(f"{checkpoint} (sam.checkpoint) is missing; `embed` will need it.")
    return lines


def estimate_cost(found: Sequence[CheckResult], params: Params, embedding_bytes: int) -> list[str]:
    """What a run over these training images takes, in words: components, prompts, disk."""
    images, rounds = len(found), len(params.rounds)
    counted = [(one.components, one.edges) for one in found if one.components is not None and one.edges is not None]
    lines = [
        f"{_format_bytes(images * embedding_bytes)} for SAM's embeddings ({images} of "
        f"{_format_bytes(embedding_bytes)}; kept up to runtime.embedding_cache_gb, {params.runtime.embedding_cache_gb:g})"
    ]
    if counted:
        each = sum(number for number, _ in counted) / len(counted)
        edges = images * sum(number for _, number in counted) / len(counted)
        masks = edges * SIDES * RUN_BYTES * MASKS
        lines = [
            f"about {each:.0f} components an image, {images * each:.0f} SAM prompts a round, {rounds} rounds "
            f"(counted on the fine labels of {len(counted)} images; a poor teacher makes more)",
            *lines,
            f"about {_format_bytes(masks)} a round for prompts and masks",
        ]
    return lines


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def parse_color(color: str) -> tuple[int, int, int]:
    """The bytes of "#rrggbb"."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def color_wheel(classes: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colors for data sets without a palette."""
    turns = [colorsys.hsv_to_rgb(k / classes, 0.85 if k % 2 else 0.55, 0.95 if k % 3 else 0.7) for k in range(classes)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in turns]


def _sample_evenly(ids: Sequence[str], number: int) -> frozenset[str]:
    """At most `number` of the ids, evenly spread."""
    return frozenset(ids[:: max(1, ceil(len(ids) / number))])


def _duplicate_ids(pairs: Sequence[Pair]) -> list[Issue]:
    several = [list(same) for _, same in groupby(pairs, key=lambda pair: pair.id)]  # they come by id
    return [(NAMES, f"{same[0].id}: {', '.join(str(p.image) for p in same)}") for same in several if len(same) > 1]


def find_images(dataset: DatasetParams) -> dict[str, list[Pair]]:
    """The images of each split that are to be used, by id.

    SesamError if none is left, if several have one id, or if an id to leave out is unknown.
    """
    root, pairs, problems = Path(dataset.root), {}, []
    for split in SPLITS:
        try:
            pairs[split] = find_pairs(dataset.format, root, getattr(dataset, split), split)
        except SesamError as problem:
            problems.append(str(problem))
    if problems:
        raise SesamError("\n  ".join(dict.fromkeys(problems)))
    left_out = set(dataset.exclude)
    if unknown := left_out - {pair.id for split in SPLITS for pair in pairs[split]}:
        raise SesamError(
            f"params.yaml: dataset.exclude lists images that {root} has not: {summarize_names(sorted(unknown))}."
        )
    pairs = {split: [pair for pair in pairs[split] if pair.id not in left_out] for split in SPLITS}
    for split in SPLITS:
        if not pairs[split]:
            raise SesamError(f"{root}: no image is left in {split}. See dataset.exclude.")
    pairs["train"] = choose_subset(pairs["train"], dataset.subset)
    if same := [one for split in SPLITS for one in _duplicate_ids(pairs[split])]:
        raise SesamError(format_issues(f"{root} (dataset.root)", same))
    if without := [pair.id for pair in pairs["val"] if pair.label is None]:
        raise SesamError(f"{root} has no fine labels to validate on for {summarize_names(without)}. See dataset.val.")
    return pairs
