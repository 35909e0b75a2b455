"""What both data set cards report about a round's pseudo-labels, and the image of each label."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from sesam.artifacts.atomic_io import csv_path, csv_text
from sesam.artifacts.manifest import Manifest
from sesam.params import NO_TEACHER, Params, flatten

GROUPS = ("seed", "dataset", "weak_labels", "teacher", "components", "sampling", "sam", "selection")
TEACHER_GROUPS = ("network", "schedule", "baseline", "student")  # they decide predictions, where a network teaches
TERMS = {  # of a data set's format: in words, and where they are
    "cityscapes": ("Cityscapes' license, not for commercial use", "https://www.cityscapes-dataset.com/license/"),
    "ade20k": ("ADE20K's terms, not for commercial use", "https://ade20k.csail.mit.edu/terms/"),
    "voc": ("Flickr's terms for the photographs", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
    "camvid": ("CamVid's terms", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "folder": ("those of the photographs' owner", None),
}


class CardData(NamedTuple):
    """What both cards report. metrics: what evaluate_labels wrote. sam_sha256: "" without weights.

    shapes: how many annotators drew, and how many left no pixel, by kind.
    """

    manifest: Manifest
    round_name: str
    params: Params
    metrics: Mapping[str, Any]
    sam_sha256: str
    code_version: str
    shapes: Mapping[str, int] = {}

    @property
    def title(self) -> str:
        return f"Pseudo-labels of {self.manifest.name}, round {self.round_name}"

    @property
    def terms(self) -> str:
        return ", ".join(filter(None, TERMS[self.manifest.format]))

    @property
    def sam(self) -> str:
        if not self.params.sam.enabled:
            return "not used"
        return f"{self.params.sam.model}, " + (f"SHA-256 {self.sam_sha256}" if self.sam_sha256 else "without weights")


def param_values(params: Params, round_name: str) -> dict[str, Any]:
    """Every param that decides the round's labels, by dotted key."""
    groups = GROUPS if params.rounds[round_name].teacher == NO_TEACHER else (*GROUPS, *TEACHER_GROUPS)
    rounds = [round_name]  # and those that taught it
    while (teacher := params.rounds[rounds[0]].teacher) in params.rounds:
        rounds.insert(0, teacher)
    values = params.model_dump()
    values["rounds"] = {name: values["rounds"][name] for name in rounds}
    return flatten({group: values[group] for group in (*groups, "rounds")})


def images_csv(manifest: Manifest, root: str) -> str:
    """images.csv: a row per image with its id, its path in the data set, with slashes, and its SHA-256."""
    rows = []
    for record in manifest.train:
        path = PurePath(record.image)
        path = path.relative_to(root) if path.is_relative_to(root) else path
        rows.append((csv_path(record.id), csv_path(path.as_posix()), record.sha256))
    return csv_text(("id", "image", "sha256"), rows)
