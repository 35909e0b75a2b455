"""Issues of a data set's files: reported all at once, with the first files of each kind."""

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import groupby
from pathlib import Path

from sesam.artifacts.atomic_io import write_text
from sesam.errors import MAX_NAMES_SHOWN
from sesam.params import is_value_or_color

ISSUES_FILE = Path("data/issues.txt")


class IssueKind(Enum):
    """A kind of issue: the files that have it, and the remedy other than leaving the images out."""

    MISSING = "missing files", "Add them"
    NOT_ANNOTATED = "images without annotation", "Choose others (dataset.train_splits, .subset)"
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
    FOLDERS = "names without the image's folder", "Annotate with the images' paths"
    SHAPES = "shapes that cannot be read", "Draw them as polygons, lines, points, boxes, ellipses or masks"
    SPELLING = "names that differ from an image's only in upper and lower case, blanks, - or _", "Rename them"
    NAMES = "names of several images", "Rename one of them"
    LEAKED = "images in train and in val", "Correct the splits"


Issue = tuple[IssueKind, str]  # and the file that has it


class DataIssue(Exception):  # noqa: N818
    """A file has an issue; the arguments are an `Issue`."""


def report_issues(where: str, issues: Sequence[Issue]) -> str:
    """All issues of a place as one report; if it does not show all files, they are written to ISSUES_FILE."""
    lines = [f"{where} has {len(issues)} issue{'s' * (len(issues) > 1)}; nothing was written."]
    by_kind = sorted((kind.value, text) for kind, text in issues)
    for (files, remedy), same_kind in groupby(by_kind, key=lambda issue: issue[0]):
        texts = [text for _, text in same_kind]
        lines.append(f"  {files}: {len(texts)}. {remedy}, or leave the images out (dataset.exclude).")
        lines += [f"    {text}" for text in texts[:MAX_NAMES_SHOWN]]
        if len(texts) > MAX_NAMES_SHOWN:
            lines.append(f"    and {len(texts) - MAX_NAMES_SHOWN} more")
    if any(line.startswith("    and ") for line in lines):
        write_text(ISSUES_FILE, "".join(f"{kind[0]}: {text}\n" for kind, text in by_kind))
        lines.append(f"  {ISSUES_FILE} lists all of them.")
    return "\n".join(lines)


def draft_map(issues: Sequence[Issue], known: Iterable[str] | None) -> str:
    """A line with `dataset.map` of all values, colors and names that are not a class, to be completed.

    known: the values that are classes, for a map with values names all of them; None if it can have names alone.
    """
    found = set[str]()
    for kind, text in issues:
        if kind == IssueKind.VALUES and known is not None:
            found |= set(re.findall(r"\b\d+$|\b\d+(?=, )|#[0-9a-f]{6}", text.rpartition(": ")[2]))
        elif kind == IssueKind.CLASSES:
            names = re.findall(r"'([^']*)'", text.rpartition(": ")[2])
            found |= {name for name in names if known is not None or not is_value_or_color(name)}
    has_values = any(kind == IssueKind.VALUES for kind, _ in issues) and any(key.isdecimal() for key in found)
    # also the values that are known, without their classes: where labels begin at 1, each means another one
    keys = sorted({*found, *(known or ())} if has_values else found, key=lambda key: (len(key), key))
    draft = ", ".join(f"{key if key.isdecimal() else repr(key)}: null" for key in keys)
    what = "each value means" if has_values else "they mean"
    return f"\n  Or say what {what}, null for no class: dataset.map: {{{draft}}}" if keys else ""
