"""A data set in its original layout as a manifest and labels of class ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import ceil
from pathlib import Path, PurePosixPath

import numpy as np

from sesam.artifacts.manifest import SPLITS, Manifest, UnusedImage
from sesam.datasets.checks import CheckResult, check_pair, collect_warnings, find_duplicates, symlinked_dirs
from sesam.datasets.data_issues import Issue, IssueKind, report_issues
from sesam.datasets.label_maps import (
    check_not_binary,
    class_names_and_palette,
    describe_unknown,
    find_palette_conflicts,
    label_map_for,
)
from sesam.datasets.layouts import ImagePair, describe_unread_files, find_pairs
from sesam.errors import SesamError, summarize_names
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import FINE_TRAIN_LABELS, DatasetParams, Params
from sesam.seeds import seed_of

MAX_COUNTED = 50  # training images whose components are counted, to estimate those of all


def import_dataset(
    pairs: Mapping[str, Sequence[ImagePair]], folders: Mapping[str, Path], params: Params
) -> tuple[Manifest, dict[str, list[CheckResult]], list[str]]:
    """Write labels as class ids; the manifest, checks per split, warnings; SesamError with every issue."""
    config = params.dataset
    classes, palette = class_names_and_palette(config)
    ignore_values = [IGNORE_INDEX] if config.ignore_values is None else config.ignore_values
    manifest = Manifest(
        Path(config.root).name, tuple(classes), tuple(palette), (), (), config.format, tuple(ignore_values), config.map
    )
    label_map = label_map_for(manifest)
    unlabeled = list[str]()
    if params.weak_labels.path != FINE_TRAIN_LABELS:  # else every fine label is needed
        pairs, unlabeled = _without_missing_labels(pairs)
    labeled = [pair.id for pair in pairs["train"] if pair.label]
    counted = set(labeled[:: ceil(len(labeled) / MAX_COUNTED) or 1])
    check = partial(check_pair, counted=counted, label_map=label_map, palette=palette, config=params.components)
    results: dict[str, list[CheckResult]] = {}
    for split in SPLITS:
        work = partial(check, folder=folders[split])
        results[split] = map_images(work, pairs[split], params.runtime, f"prepare {split}")
    records = {split: [result.record for result in results[split] if result.record] for split in SPLITS}
    leaked, duplicates = find_duplicates(records)
    issues = [issue for split in SPLITS for result in results[split] for issue in result.issues] + leaked
    if config.format == "folder":
        files = [pair for split in SPLITS for pair in zip(pairs[split], results[split], strict=True)]
        colors = [(str(pair.label), result.colors) for pair, result in files]
        conflicts = find_palette_conflicts(colors, classes, palette if config.palette else None, label_map)
        issues += [Issue(IssueKind.PALETTES, text) for text in conflicts]
    if issues:
        notes = describe_unknown(issues, label_map, manifest)
        raise SesamError(report_issues(f"{config.root} (dataset.root)", issues, notes))
    _check_classes(results, manifest, config.root)
    manifest = replace(manifest, train=tuple(records["train"]), val=tuple(records["val"]))
    paths = [file for split in SPLITS for pair in pairs[split] for file in (pair.image, pair.label) if file]
    links = symlinked_dirs(Path(config.root), paths)
    warnings = collect_warnings(results, duplicates, links, classes, params)
    return manifest, results, unlabeled + warnings + _warn_unread_files(config)


def _without_missing_labels(
    pairs: Mapping[str, Sequence[ImagePair]],
) -> tuple[Mapping[str, Sequence[ImagePair]], list[str]]:
    """Training images whose label is missing are without one, unless all are; and a warning of that."""
    missing = {pair.id for pair in pairs["train"] if pair.label and pair.image.exists() and not pair.label.exists()}
    if not missing or len(missing) == len(pairs["train"]):
        return pairs, []
    train = [pair._replace(label=None) if pair.id in missing else pair for pair in pairs["train"]]
    return {**pairs, "train": train}, [f"training images without a fine label: {summarize_names(sorted(missing))}."]


def _check_classes(results: Mapping[str, Sequence[CheckResult]], manifest: Manifest, root: str) -> None:
    """SesamError if a split's labels have no class, or look like binary masks."""
    for split, of_split in results.items():
        counts = [result.counts[0] for result in of_split if result.counts is not None]
        if split == "val" and of_split and not np.any(counts):
            raise SesamError(f"{root}: the validation labels have no class. See dataset.val_splits.")
        values = np.zeros(256, bool)
        values[: len(manifest.classes)] = np.sum(counts, axis=0) > 0 if counts else False
        values[IGNORE_INDEX] = any(result.has_ignored for result in of_split)
        if manifest.format == "folder" and not any(result.colors.values for result in of_split):
            check_not_binary(f"{root} (dataset.root), {split}", manifest.classes, values)


def _warn_unread_files(config: DatasetParams) -> list[str]:
    """Warnings of files in the folders of images and labels that are not read."""
    if config.format != "folder":
        return []
    root, warnings = Path(config.root), list[str]()
    for split in SPLITS:
        chosen = getattr(config, f"{split}_splits")
        for name in [split] if chosen is None else chosen:
            images = describe_unread_files(root / "images" / name)
            labels = describe_unread_files(root / "labels" / name, (".png",))
            warnings += [f"{text}." for text in (images, labels) if text]
    return warnings


def find_images(config: DatasetParams) -> tuple[dict[str, list[ImagePair]], list[UnusedImage]]:
    """Each split's images to use, by id, and those that are not used, by dataset.exclude or .subset.

    SesamError if none is left, two have one id, or one to exclude is unknown.
    """
    root, pairs, problems = Path(config.root), {}, []
    for split in SPLITS:
        try:
            pairs[split] = find_pairs(config.format, root, getattr(config, f"{split}_splits"), split)
        except SesamError as problem:
            problems.append(str(problem))
    if problems:
        raise SesamError("\n  ".join(dict.fromkeys(problems)))
    found = [pair for split in SPLITS for pair in pairs[split]]
    ids = {split: {pair.id for pair in pairs[split]} for split in SPLITS}
    if both := sorted(set(config.exclude) & ids["train"] & ids["val"]):
        raise SesamError(
            f"params.yaml: dataset.exclude lists {summarize_names(both)}, which train and val both have. Write the "
            f"split before the id, as train/{both[0]}."
        )
    listed = set(config.exclude)
    excluded = {split: {k for k in ids[split] if {k, f"{split}/{k}"} & listed} for split in SPLITS}
    known = {name for split in SPLITS for k in ids[split] for name in (k, f"{split}/{k}")}
    if unknown := sorted(set(config.exclude) - known):
        raise SesamError(
            f"params.yaml: dataset.exclude lists images that are not in {root}: {summarize_names(unknown)}."
        )
    for split in SPLITS:
        pairs[split] = [pair for pair in pairs[split] if pair.id not in excluded[split]]
        if not pairs[split] and (split == "train" or config.val_splits != []):
            raise SesamError(f"{root}: no image is left in {split}. See dataset.exclude.")
        _check_names(root, pairs[split])
    pairs["train"] = choose_subset(pairs["train"], config.subset)
    groups = (list(same) for split in SPLITS for _, same in groupby(pairs[split], key=lambda pair: pair.id))  # sorted
    if several := [same for same in groups if len(same) > 1]:
        names = [f"{same[0].id}: {', '.join(str(pair.image) for pair in same)}" for same in several]
        issues = [Issue(IssueKind.NAMES, text) for text in names]
        raise SesamError(report_issues(f"{root} (dataset.root)", issues))
    if bare := [pair.id for pair in pairs["val"] if pair.label is None]:
        remedy = "Add them, or set dataset.val_splits: []"
        raise SesamError(f"{root} has no fine labels of validation images: {summarize_names(bare)}. {remedy}.")
    used = {pair.image for split in SPLITS for pair in pairs[split]}
    return pairs, [UnusedImage(pair.id, pair.image.as_posix()) for pair in found if pair.image not in used]


def _check_names(root: Path, pairs: Sequence[ImagePair]) -> None:
    """SesamError for ids that would name both a file and a folder: `a` and `a.png/b`."""
    ids, issues = {pair.id for pair in pairs}, []
    for pair in pairs:
        folders = [path for path in PurePosixPath(pair.id).parents if path.suffix in (".png", ".json")]
        if others := [path for path in folders if str(path.with_suffix("")) in ids]:
            issues.append(
                Issue(IssueKind.NAMES, f"{pair.image}: the folder {others[0]} has the name of an image's file")
            )
    if issues:
        raise SesamError(report_issues(f"{root} (dataset.root)", issues))


def choose_subset(pairs: Sequence[ImagePair], subset: float | list[str] | None) -> list[ImagePair]:
    """The training images of an annotation budget: a fraction of them, rounded up, or those listed.

    A smaller fraction is part of every larger one, and the same for every seed. SesamError for an id that is unknown.
    """
    ids = [pair.id for pair in pairs]
    if isinstance(subset, float):
        chosen = set(sorted(ids, key=partial(seed_of, "subset"))[: ceil(subset * len(ids) - 1e-9)])
    else:
        chosen = set(ids if subset is None else subset)
    if unknown := sorted(chosen - set(ids)):
        raise SesamError(
            f"params.yaml: dataset.subset lists images that are not in the training splits: "
            f"{summarize_names(unknown)}. Training images have ids like {ids[0]}."
        )
    return [pair for pair in pairs if pair.id in chosen]
