"""Issues of a data set's files: reported all at once, with the first files of each kind."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

MAX_SHOWN = 5  # files of each kind


class IssueKind(NamedTuple):
    """A kind of issue: the messages for one file and for several, and the remedy."""

    singular: str
    plural: str
    remedy: str


_LEAVE_OUT = "leave the image out (dataset.exclude)"
MISSING = IssueKind("file is missing", "files are missing", f"Add it, or {_LEAVE_OUT}")
NOT_ANNOTATED = IssueKind(
    "image has no annotation",
    "images have no annotation",
    f"Choose other images (dataset.train, .subset), or {_LEAVE_OUT}",
)
UNREADABLE = IssueKind("file cannot be read", "files cannot be read", f"Replace it, or {_LEAVE_OUT}")
NARROW = IssueKind(
    "image is more than 64 times as long as wide",
    "images are more than 64 times as long as wide",
    f"Scaled down for SAM, nothing of it would be left. Crop it, or {_LEAVE_OUT}",
)
UNFIT = IssueKind(
    "image has an unsupported name or size",
    "images have an unsupported name or size",
    f"Names have printable characters, sides at most 65,536 pixels. Rename or crop it, or {_LEAVE_OUT}",
)
SIZES = IssueKind(
    "label differs from its image in size", "labels differ from their images in size", f"Replace it, or {_LEAVE_OUT}"
)
VALUES = IssueKind(
    "label has values that are not a class",
    "labels have values that are not a class",
    "Check dataset.format: labels have the data set's original values (Cityscapes: label ids, not train ids). Correct "
    "the label; with format folder, dataset.ignore_values lists values without a class",
)
NAMES = IssueKind("name is of several images", "names are of several images", f"Rename one, or {_LEAVE_OUT}")
LEAKED = IssueKind(
    "image is in train and in val", "images are in train and in val", f"Correct the splits, or {_LEAVE_OUT}"
)

Issue = tuple[IssueKind, str]  # and the file that has it


class DataIssue(Exception):  # noqa: N818
    """A file has an issue."""

    def __init__(self, kind: IssueKind, text: str) -> None:
        super().__init__(text)
        self.issue: Issue = (kind, text)


def format_issues(where: str, issues: Sequence[Issue]) -> str:
    """All issues of a place as one report."""
    lines = [f"{where} has {len(issues)} issue{'s' * (len(issues) > 1)}; nothing was written."]
    for kind, same_kind in groupby(sorted(issues), key=lambda issue: issue[0]):
        texts = [text for _, text in same_kind]
        lines.append(f"  {len(texts)} {kind.singular if len(texts) == 1 else kind.plural}. {kind.remedy}.")
        lines += [f"    {text}" for text in texts[:MAX_SHOWN]]
        if len(texts) > MAX_SHOWN:
            lines.append(f"    and {len(texts) - MAX_SHOWN} more")
    return "\n".join(lines)


def summarize_names(names: Sequence[str]) -> str:
    """The number of names, and the first few."""
    return f"{len(names)} ({', '.join(names[:MAX_SHOWN])}{', …' if names[MAX_SHOWN:] else ''})"
