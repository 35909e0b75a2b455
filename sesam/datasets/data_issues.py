"""Issues of a data set's files: reported all at once, with the first files of each kind."""

from collections.abc import Sequence
from enum import Enum
from itertools import groupby

MAX_SHOWN = 5  # files of each kind


class IssueKind(Enum):
    """A kind of issue: the messages for one file and for several, and the remedy other than leaving the image out."""

    MISSING = "file is missing", "files are missing", "Add it"
    NOT_ANNOTATED = "image has no annotation", "images have no annotation", "Choose others (dataset.train, .subset)"
    UNREADABLE = "file cannot be read", "files cannot be read", "Replace it"
    NARROW = (
        "image is more than 64 times as long as wide",
        "images are more than 64 times as long as wide",
        "Scaled down for SAM, nothing of it would be left. Crop it",
    )
    UNFIT = (
        "image has an unsupported name or size",
        "images have an unsupported name or size",
        "Names have printable characters, sides at most 65,536 pixels. Rename or crop it",
    )
    SIZES = "label differs from its image in size", "labels differ from their images in size", "Replace it"
    VALUES = (
        "label has values that are not a class",
        "labels have values that are not a class",
        "Check dataset.format: labels have the data set's original values (Cityscapes: label ids, not train ids). With "
        "format folder, dataset.ignore_values lists values without a class. Correct the label",
    )
    NAMES = "name is of several images", "names are of several images", "Rename one"
    LEAKED = "image is in train and in val", "images are in train and in val", "Correct the splits"


Issue = tuple[IssueKind, str]  # and the file that has it


class DataIssue(Exception):  # noqa: N818
    """A file has an issue; the arguments are an `Issue`."""


def format_issues(where: str, issues: Sequence[Issue]) -> str:
    """All issues of a place as one report."""
    lines = [f"{where} has {len(issues)} issue{'s' * (len(issues) > 1)}; nothing was written."]
    by_kind = sorted((kind.value, text) for kind, text in issues)
    for (singular, plural, remedy), same_kind in groupby(by_kind, key=lambda issue: issue[0]):
        texts = [text for _, text in same_kind]
        subject = singular if len(texts) == 1 else plural
        lines.append(f"  {len(texts)} {subject}. {remedy}, or leave the image out (dataset.exclude).")
        lines += [f"    {text}" for text in texts[:MAX_SHOWN]]
        if len(texts) > MAX_SHOWN:
            lines.append(f"    and {len(texts) - MAX_SHOWN} more")
    return "\n".join(lines)


def summarize_names(names: Sequence[str]) -> str:
    """The number of names, and the first few."""
    return f"{len(names)} ({', '.join(names[:MAX_SHOWN])}{', …' if names[MAX_SHOWN:] else ''})"
