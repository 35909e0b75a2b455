"""What both data set cards say of a round's pseudo-labels, and which image each label is of."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from sesam.artifacts.manifest import Dataset, ImageRecord
from sesam.params import NO_TEACHER, Params, flatten

GROUPS = ("seed", "dataset", "weak_labels", "teacher_labels", "components", "sampling", "sam", "selection")
TEACHERS = ("network", "schedule", "teacher", "student")  # decide predictions, where a network teaches
TERMS = {
    "cityscapes": (
        "Cityscapes' own, for research that is not commercial",
        "https://www.cityscapes-dataset.com/license/",
    ),
    "ade20k": (
        "ADE20K's own, for research and education that are not commercial",
        "https://ade20k.csail.mit.edu/terms/",
    ),
    "voc": ("Flickr's terms for the photographs", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
    "camvid": ("CamVid's own", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "folder": ("those of the photographs' owner", None),
}


class CardData(NamedTuple):
    """What both cards say. judged: what evaluate_labels found. weights: SAM's SHA-256; code: the commit."""

    data: Dataset
    name: str
    params: Params
    judged: Mapping[str, Any]
    weights: str
    code: str

    @property
    def title(self) -> str:
        return f"Pseudo-labels of {self.data.name}, round {self.name}"

    @property
    def terms(self) -> str:
        whose, address = TERMS[self.data.format]
        return whose + (f", {address}" if address else "")

    @property
    def sam(self) -> str:
        return f"{self.params.sam.model}, " + (f"SHA-256 {self.weights}" if self.weights else "without weights")


def code_version(root: Path = Path(__file__).parents[2]) -> str:
    """The last commit that touched the code, and whether it was changed since; the package's version without git."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    paths = ("sesam", "stages", "dvc.yaml", "constraints.txt")
    try:
        commit = git("log", "-1", "--format=%H", "--", *paths)
        changed = git("status", "--porcelain", "--", *paths)
    except (OSError, subprocess.CalledProcessError):
        commit = changed = ""
    said = f", commit {commit}" if commit else ""
    return f"SeSAM {version('sesam')}{said}" + (" with changes that are not committed" if changed else "")


def param_values(params: Params, name: str) -> dict[str, Any]:
    """Every param that decides the round's labels, by dotted key."""
    groups = GROUPS if params.rounds[name].teacher == NO_TEACHER else (*GROUPS, *TEACHERS)
    names = [name]
    while (teacher := params.rounds[names[0]].teacher) in params.rounds.keys() - names:
        names.insert(0, teacher)
    found = params.model_dump(include={*groups})
    return flatten(
        {group: found[group] for group in groups} | {f"rounds.{k}": params.rounds[k].model_dump() for k in names}
    )


def path_in(root: str, item: ImageRecord) -> str:
    """Where an image lies in its data set, with slashes."""
    image = PurePath(item.image)
    return (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()


def images_csv(data: Dataset, root: str) -> str:
    """images.csv, a row an image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "image", "sha256"))
    writer.writerows((item.id, path_in(root, item), item.sha256) for item in data.train)
    return text.getvalue()
