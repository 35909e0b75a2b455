"""Files that annotation tools' own libraries wrote, against the label maps that those libraries draw of them."""

import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from dataset_factories import image_names, make_label_map
from PIL import Image

from sesam.datasets.annotation_shapes import Drawing
from sesam.datasets.annotations.common import LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation

ARCHIVE = Path(__file__).parents[1] / "data/real_tools/annotations.tar.xz"
CLASSES = ("road", "wall", "car", "tree", "sky", "person")
TOOLS = {  # kinds of images, and how many label maps they are
    "labelme": ("polygon circle mask mixed", 12),  # rotated boxes label no pixel
    "cvat": ("polygon mask mixed", 9),
    "masks": ("polygon mask mixed", 9),
    "coco": ("polygon mask mixed", 9),
    "label_studio": ("polygon mask mixed", 9),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real_tools")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("tool", TOOLS)
def test_pixels_are_those_that_the_tool_draws(tool: str, files: Path) -> None:
    """999 of 1000 in each kind of images; the rest are ties: Datumaro rounds coordinates to single precision."""
    labels = {path.stem: np.array(Image.open(path)) for path in files.glob(f"labels/{tool}/[!r]*.png")}
    annotations = find_annotations(files / tool, "folder", image_names(*labels), CLASSES)
    equal = defaultdict[str, list[np.ndarray]](list)
    for name, expected in labels.items():
        spec = LabelSpec(expected.shape, CLASSES, make_label_map("folder", len(CLASSES)), thickness=1, radius=0)
        equal[name.split("_")[0]].append(read_annotation(annotations[name], spec).labels.ravel() == expected.ravel())
    kinds, count = TOOLS[tool]
    assert set(equal) == set(kinds.split()) and len(labels) == count
    ratios = {kind: np.concatenate(found).mean() for kind, found in equal.items()}
    assert min(ratios.values()) >= 0.999, ratios


@pytest.mark.parametrize("tool", ["labelme", "cvat", "label_studio"])
def test_coordinates_are_those_that_the_tool_has(tool: str, files: Path) -> None:
    """Of boxes, rotated ones too, lines and points, within what the file's decimals keep."""
    known = json.loads((files / "coordinates.json").read_text())[tool]
    annotations = find_annotations(files / tool, "folder", image_names(*known), CLASSES)
    for name, shapes in known.items():
        drawing = annotations[name]
        assert isinstance(drawing, Drawing)
        for shape, expected in zip(drawing.shapes, shapes, strict=True):
            corners = np.reshape(expected, (-1, 2))
            if shape.kind == "box":  # some are given by two corners
                assert np.allclose(shape.points.min(0), corners.min(0), atol=0.01)
                assert np.allclose(shape.points.max(0), corners.max(0), atol=0.01)
            if len(corners) == len(shape.points):
                assert np.allclose(shape.points, corners, atol=0.01)
