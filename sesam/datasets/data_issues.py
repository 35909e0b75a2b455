"""What may be wrong with the files of a data set: reported all at once, with the first files of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

SHOWN = 5  # files of each kind


class Fault(NamedTuple):
    """A kind of fault: what to say of one file and of several, and what to do."""

    one: str
    several: str
    remedy: str


_LEAVE_OUT = "leave the image out (dataset.exclude)"
MISSING = Fault("file is missing", "files are missing", f"Add it, or {_LEAVE_OUT}")
NOT_ANNOTATED = Fault(
    "image has no annotation",
    "images have no annotation",
    f"Choose others (dataset.train, .subset), or {_LEAVE_OUT}",
)
UNREADABLE = Fault("file cannot be read", "files cannot be read", f"Replace it, or {_LEAVE_OUT}")
NARROW = Fault(
    "image is more than 64 times as long as wide",
    "images are more than 64 times as long as wide",
    f"Scaled down for SAM, nothing of it would be left. Cut it, or {_LEAVE_OUT}",
)
UNFIT = Fault(
    "image has a name or a size that is not taken",
    "images have a name or a size that is not taken",
    f"Names are of printable characters, sides of at most 65,536 pixels. Rename it, cut it, or {_LEAVE_OUT}",
)
SIZES = Fault("label has not its image's size", "labels have not their images' size", f"Replace it, or {_LEAVE_OUT}")
VALUES = Fault(
    "label holds what is no class",
    "labels hold what is no class",
    "Is dataset.kind right? Labels hold the maker's values (Cityscapes: label ids, no train ids). Correct the label; "
    "for a folder of your own, dataset.ignore lists values to leave out",
)
NAMES = Fault("name stands for several images", "names stand for several images", f"Rename one, or {_LEAVE_OUT}")
LEAKED = Fault("image is in train and in val", "images are in train and in val", f"Correct the splits, or {_LEAVE_OUT}")

Found = tuple[Fault, str]  # a fault, and which file has it


class Faulty(Exception):
    """A file has a fault; `found` says which."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.found = (fault, text)


def message(where: str, faults: Sequence[Found]) -> str:
    """All faults found at a place as one report."""
    lines = [f"{where} has {len(faults)} fault{'s' * (len(faults) > 1)}; nothing was written."]
    for fault, same in groupby(sorted(faults), key=lambda found: found[0]):
        texts = [text for _, text in same]
        lines.append(f"  {len(texts)} {fault.one if len(texts) == 1 else fault.several}. {fault.remedy}.")
        lines += [f"    {text}" for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            lines.append(f"    and {len(texts) - SHOWN} more")
    return "\n".join(lines)


def some(names: Sequence[str]) -> str:
    """How many, and the first few."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', …' if names[SHOWN:] else ''})"
