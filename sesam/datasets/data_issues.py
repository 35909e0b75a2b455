"""What may be wrong with the files of a data set: reported all at once, with the first files of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

MAX_SHOWN = 5  # files of each kind


class IssueKind(NamedTuple):
    """A kind of fault: what to say of one file and of several, and what to do."""

    one: str
    several: str
    remedy: str


_LEAVE_OUT = "leave the image out (dataset.exclude)"
MISSING = IssueKind("file is missing", "files are missing", f"Add it, or {_LEAVE_OUT}")
NOT_ANNOTATED = IssueKind(
    "image has no annotation",
    "images have no annotation",
    f"Choose others (dataset.train, .subset), or {_LEAVE_OUT}",
)
UNREADABLE = IssueKind("file cannot be read", "files cannot be read", f"Replace it, or {_LEAVE_OUT}")
NARROW = IssueKind(
    "image is more than 64 times as long as wide",
    "images are more than 64 times as long as wide",
    f"Scaled down for SAM, nothing of it would be left. Cut it, or {_LEAVE_OUT}",
)
UNFIT = IssueKind(
    "image has a name or a size that is not taken",
    "images have a name or a size that is not taken",
    f"Names are of printable characters, sides of at most 65,536 pixels. Rename it, cut it, or {_LEAVE_OUT}",
)
SIZES = IssueKind(
    "label has not its image's size", "labels have not their images' size", f"Replace it, or {_LEAVE_OUT}"
)
VALUES = IssueKind(
    "label holds what is no class",
    "labels hold what is no class",
    "Is dataset.format right? Labels hold the maker's values (Cityscapes: label ids, no train ids). Correct the label; "
    "for a folder of your own, dataset.ignore_values lists values to leave out",
)
NAMES = IssueKind("name stands for several images", "names stand for several images", f"Rename one, or {_LEAVE_OUT}")
LEAKED = IssueKind(
    "image is in train and in val", "images are in train and in val", f"Correct the splits, or {_LEAVE_OUT}"
)

Issue = tuple[IssueKind, str]  # a fault, and which file has it


class DataIssue(Exception):
    """A file has a fault; `found` says which."""

    def __init__(self, fault: IssueKind, text: str) -> None:
        super().__init__(text)
        self.found = (fault, text)


def format_issues(where: str, faults: Sequence[Issue]) -> str:
    """All faults found at a place as one report."""
    lines = [f"{where} has {len(faults)} fault{'s' * (len(faults) > 1)}; nothing was written."]
    for fault, same in groupby(sorted(faults), key=lambda found: found[0]):
        texts = [text for _, text in same]
        lines.append(f"  {len(texts)} {fault.one if len(texts) == 1 else fault.several}. {fault.remedy}.")
        lines += [f"    {text}" for text in texts[:MAX_SHOWN]]
        if len(texts) > MAX_SHOWN:
            lines.append(f"    and {len(texts) - MAX_SHOWN} more")
    return "\n".join(lines)


def summarize_names(names: Sequence[str]) -> str:
    """How many, and the first few."""
    return f"{len(names)} ({', '.join(names[:MAX_SHOWN])}{', …' if names[MAX_SHOWN:] else ''})"
