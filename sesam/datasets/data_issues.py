"""Issues of a data set's files: reported all at once, with the first files of each kind."""

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from sesam.artifacts.atomic_io import write_text
from sesam.errors import MAX_NAMES_SHOWN

MAX_NOTE = 500  # characters of a note in a message; a longer one is in ISSUES_FILE
ISSUES_FILE = Path("data/issues.txt")


class IssueKind(Enum):
    """A kind of issue: the files that have it, and the remedy other than leaving the images out."""

    MISSING = "missing files", "Add them"
    NOT_ANNOTATED = (
        "images without annotation",
        "Use their fine labels, or them as unlabeled (weak_labels.unannotated: use); choose others "
        "(dataset.train_splits, .subset)",
    )
    UNREADABLE = "unreadable files", "Replace them"
    NARROW = "images more than 64 times as long as wide", "Scaled down for SAM, nothing would be left. Crop them"
    UNFIT = (
        "images with an unsupported name or size",
        "Use at most 250 bytes of printable characters, and 65,536 pixels a side",
    )
    SIZES = "labels that differ from their image in size", "Replace them"
    VALUES = (
        "labels with values that are not a class",
        "Check dataset.format: labels have the data set's original values (Cityscapes: label ids, not train ids). With "
        "format folder, dataset.ignore_values lists values without a class. Correct the labels",
    )
    CLASSES = "annotations with names that are not a class", "Rename them, or add them to dataset.classes"
    PALETTES = "label PNGs whose colors contradict their values", "Save them with one palette for all, or as RGB"
    FOLDERS = "names without the image's folder", "Write the folder before each name"
    SHAPES = "shapes that cannot be read", "Draw them as polygons, lines, points, boxes, ellipses or masks"
    SPELLING = "names that differ from an image's only in upper and lower case, blanks, - or _", "Rename them"
    NAMES = "names of several images", "Rename one of them"
    LEAKED = "images in train and in val", "Correct the splits"


class Issue(NamedTuple):
    """What is wrong with a file. text: names the file. draft: entries of dataset.map that it lacks, to be completed."""

    kind: IssueKind
    text: str
    draft: Mapping[str, str | None] = {}


class DataIssue(Exception):  # noqa: N818
    """A file has an issue; the arguments are an `Issue`'s."""


def unknown_values(path: Path | None, unknown: Sequence[str]) -> DataIssue:
    """The issue of a label file with values and colors of no class, as `LabelMap.class_ids` lists them."""
    draft = {value: None for value in unknown if value.isdecimal() or value.startswith("#")}
    return DataIssue(IssueKind.VALUES, f"{path}: {', '.join(unknown)}", draft)


def report_issues(where: str, issues: Sequence[Issue], notes: Iterable[str] = ()) -> str:
    """All issues of a place, and notes, as one report; what it does not show of them is written to ISSUES_FILE."""
    lines = [f"{where} has {len(issues)} issue{'s' * (len(issues) > 1)}; nothing was written."]
    by_kind = sorted((issue.kind.value, issue.text) for issue in issues)
    hidden = list[str]()
    for (files, remedy), same_kind in groupby(by_kind, key=lambda issue: issue[0]):
        texts = [text for _, text in same_kind]
        lines.append(f"  {files}: {len(texts)}. {remedy}, or leave the images out (dataset.exclude).")
        lines += [f"    {text}" for text in texts[:MAX_NAMES_SHOWN]]
        if len(texts) > MAX_NAMES_SHOWN:
            lines.append(f"    and {len(texts) - MAX_NAMES_SHOWN} more")
            hidden = [f"{kind[0]}: {text}" for kind, text in by_kind]
    if hidden:
        lines.append(f"  {ISSUES_FILE} lists all of them.")
    for note in notes:
        is_long = len(note) > MAX_NOTE
        hidden += [note] * is_long
        lines.append(f"  {note[:80]}… (whole in {ISSUES_FILE})" if is_long else f"  {note}")
    if hidden:
        write_text(ISSUES_FILE, "".join(f"{line}\n" for line in hidden))
    return "\n".join(lines)


def draft_map(issues: Sequence[Issue], given: Mapping[str, str | None], known: Iterable[str] | None) -> list[str]:
    """A note with `dataset.map` as it is `given`, and all that it lacks, to be completed; none if it lacks nothing.

    known: the values that are classes, for a map with values names all of them; None if it can have names alone.
    """
    found = [issue for issue in issues if known is not None or issue.kind != IssueKind.VALUES]
    draft = {key: name for issue in found for key, name in issue.draft.items()}
    if not draft:
        return []
    has_values = any(key.isdecimal() for issue in found if issue.kind == IssueKind.VALUES for key in issue.draft)
    # also the values that are known, without their classes: where labels begin at 1, each means another one
    draft = {**dict.fromkeys(known or () if has_values else ()), **draft, **given}
    what = "each value means in all labels" if has_values else "they mean"
    return [f"Or say what {what}, null for no class: {format_map(draft)}"]


def format_map(entries: Mapping[str, str | None]) -> str:
    """dataset.map as YAML, to be pasted."""
    keys = sorted(entries, key=lambda key: (len(key), key))
    pairs = (f"{key if key.isdecimal() else _quote(key)}: {_quote(entries[key])}" for key in keys)
    return f"dataset.map: {{{', '.join(pairs)}}}"


def draft_exclude(missing: Sequence[str], given: Sequence[str]) -> list[str]:
    """A note with `dataset.exclude` as it is `given`, and the training images `missing` by id; none without these."""
    ids = ", ".join(_quote(k) for k in (*given, *(f"train/{k}" for k in missing)))
    return [f"To leave out those without annotation: dataset.exclude: [{ids}]"] if missing else []


def _quote(value: str | None) -> str:
    """A text, or null, as both YAML and JSON have it."""
    return json.dumps(value, ensure_ascii=False)
