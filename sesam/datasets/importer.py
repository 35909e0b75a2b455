"""A data set in its original layout as a manifest and labels of class ids."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from math import ceil
from pathlib import Path

from sesam.artifacts.manifest import SPLITS, Manifest
from sesam.datasets.checks import CheckResult, check_pair, collect_warnings, find_duplicates, symlinked_dirs
from sesam.datasets.data_issues import IssueKind, format_issues, summarize_names
from sesam.datasets.label_maps import class_names_and_palette, label_map_for
from sesam.datasets.layouts import ImagePair, find_pairs
from sesam.errors import SesamError
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import DatasetParams, Params
from sesam.seeds import seed_of

MAX_COUNTED = 100  # training images whose components are counted, to estimate those of all


def import_dataset(
    pairs: Mapping[str, Sequence[ImagePair]], folders: Mapping[str, Path], params: Params
) -> tuple[Manifest, list[CheckResult], list[str]]:
    """Write labels as class ids; the manifest, checks of training images, warnings; SesamError with every issue."""
    config = params.dataset
    classes, palette = class_names_and_palette(config)
    ignore_values = [IGNORE_INDEX] if config.ignore_values is None else config.ignore_values
    label_map = label_map_for(config.format, len(classes), ignore_values)
    labeled = [pair.id for pair in pairs["train"] if pair.label]
    counted = set(labeled[:: ceil(len(labeled) / MAX_COUNTED) or 1])
    check = partial(check_pair, counted=counted, label_map=label_map, palette=palette, config=params.components)
    results: dict[str, list[CheckResult]] = {}
    for split in SPLITS:
        work = partial(check, folder=folders[split])
        results[split] = map_images(work, pairs[split], params.runtime, f"prepare {split}")
    records = {split: [result.record for result in results[split] if result.record] for split in SPLITS}
    leaked, duplicates = find_duplicates(records)
    if issues := [issue for split in SPLITS for result in results[split] for issue in result.issues] + leaked:
        report = format_issues(f"{config.root} (dataset.root)", issues)
        if any(kind == IssueKind.VALUES for kind, _ in issues):
            report += f"\n  Known values: {label_map.describe()}."
        raise SesamError(report)
    if not any(result.counts is not None and result.counts.any() for result in results["val"]):
        raise SesamError(f"{config.root}: the validation labels have no class. See dataset.val_splits.")
    root, (train, val) = Path(config.root), (tuple(records[split]) for split in SPLITS)
    dataset = Manifest(root.name, tuple(classes), tuple(palette), train, val, config.format, tuple(ignore_values))
    files = [file for split in SPLITS for pair in pairs[split] for file in (pair.image, pair.label) if file]
    warnings = collect_warnings(results["train"], duplicates, symlinked_dirs(root, files), classes, params)
    return dataset, results["train"], warnings


def find_images(dataset: DatasetParams) -> dict[str, list[ImagePair]]:
    """Each split's images to use, by id; SesamError if none is left, two have one id, or one to exclude is unknown."""
    root, pairs, problems = Path(dataset.root), {}, []
    for split in SPLITS:
        try:
            pairs[split] = find_pairs(dataset.format, root, getattr(dataset, f"{split}_splits"), split)
        except SesamError as problem:
            problems.append(str(problem))
    if problems:
        raise SesamError("\n  ".join(dict.fromkeys(problems)))
    excluded = set(dataset.exclude)
    if unknown := sorted(excluded - {pair.id for split in SPLITS for pair in pairs[split]}):
        raise SesamError(
            f"params.yaml: dataset.exclude lists images that are not in {root}: {summarize_names(unknown)}."
        )
    for split in SPLITS:
        pairs[split] = [pair for pair in pairs[split] if pair.id not in excluded]
        if not pairs[split]:
            raise SesamError(f"{root}: no image is left in {split}. See dataset.exclude.")
    pairs["train"] = choose_subset(pairs["train"], dataset.subset)
    groups = (list(same) for split in SPLITS for _, same in groupby(pairs[split], key=lambda pair: pair.id))  # sorted
    if several := [same for same in groups if len(same) > 1]:
        issues = [(IssueKind.NAMES, f"{same[0].id}: {', '.join(str(pair.image) for pair in same)}") for same in several]
        raise SesamError(format_issues(f"{root} (dataset.root)", issues))
    if ids := [pair.id for pair in pairs["val"] if pair.label is None]:
        raise SesamError(f"{root} has no fine labels of validation images: {summarize_names(ids)}. See val_splits.")
    return pairs


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
