"""What is not a number, not a pair or not one label is a fault that names it, in every reader."""

import base64
import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_factories import image_names, make_label_map
from PIL import Image

from sesam.artifacts.atomic_io import read_json
from sesam.datasets.annotations.common import LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.data_issues import DataIssue
from sesam.errors import SesamError

SPEC = LabelSpec((40, 60), ["a", "b"], make_label_map("folder", 2)._replace(names={"a": 0, "b": 1}), 3, 1)


def read(path: Path, content: Any, dataset_format: str = "folder") -> np.ndarray:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    (annotation,) = find_annotations(path, dataset_format, image_names("a")).values()
    return read_annotation(annotation, SPEC).labels


def cvat(element: str, width: str = "60") -> str:
    return f'<annotations><image name="a.png" width="{width}" height="40">{element}</image></annotations>'


BOX = '<box label="a" xtl="1" ytl="1" xbr="{}" ybr="20"/>'
MASK = '<mask label="a" left="0" top="0" width="2" height="1" rle="{}"/>'
XML = {
    "NaN": (cvat(BOX.format("nan")), "nan is not a coordinate"),
    "infinity": (cvat(BOX.format("inf")), "inf is not a coordinate"),
    "huge": (cvat(BOX.format("1e9")), "1e9 is not a coordinate"),
    "underscore": (cvat(BOX.format("1_0")), "1_0 is not a coordinate"),
    "negative box": (cvat(BOX.format(5) + BOX.format("-5")), r"a\.png, shape 2: a box that ends before it begins"),
    "no label": (cvat(BOX.format(5).replace("label", "name")), r"a\.png, shape 1: it lacks 'label'"),
    "cut": (cvat("")[:-9], "CVAT for images 1.1 .it ends too early"),
    "other root": ("<dataset/>", "unknown format"),
    "negative ellipse": (cvat('<ellipse label="a" cx="9" cy="9" rx="-4" ry="3"/>'), "negative radius"),
    "regrouped": (cvat('<polygon label="a" points="1,2,3,4;5,6,7,8"/>'), "points are not pairs"),
    "three": (cvat('<polygon label="a" points="1,2,3;4,5,6"/>'), "points are not pairs"),
    "wide digits": (cvat("", "６０"), "is not a whole number"),
    "run": (cvat(MASK.format("1, 1_0")), "is not a whole number"),
}


@pytest.mark.parametrize("content, message", XML.values(), ids=XML)
def test_cvat(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((SesamError, DataIssue), match=message):
        read(tmp_path / "a.xml", content)


def coco(**shape: Any) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.png", "width": 60, "height": 40}
    shape = {"image_id": 1, "category_id": 1, **shape}
    return {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": [shape]}


COCO = {
    "odd": (coco(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd number of coordinates"),
    "boolean": (coco(segmentation=[[True, 2, 3, 4, 5, 6]]), "valid number"),
    "text": (coco(segmentation=[["1", 2, 3, 4, 5, 6]]), "valid number"),
    "negative box": (coco(bbox=[5, 5, -3, 4]), "annotation number 1: a box that ends before it begins"),
    "negative box of an id": (coco(id=7, bbox=[5, 5, 3, -4]), "annotation 7: a box that ends before it begins"),
    "flat box": (
        coco(id=7, segmentation=[5, 5, 3, 4]),
        "annotation 7: segmentation.polygons: 4 numbers are not a polygon",
    ),
    "points": (coco(segmentation=[[5, 5], [20, 5], [20, 9]]), "points are not a polygon"),
    "results": ([coco()["annotations"][0]], "COCO's annotations without images and categories"),
    "no mapping": (coco() | {"images": [3]}, "images.0: expected a mapping, got 3"),
    "flat text": (coco(segmentation=[1, 2, 3, 4, 5, "6"]), "valid number"),
    "size of runs": (coco(segmentation={"size": [4], "counts": "0"}), "segmentation.run lengths.size"),
    "runs": (coco(id=7, segmentation={"size": [40, 60], "counts": [3]}), r"do not fit .*\(annotation 7\)"),
    "image as text": (coco(image_id="1", bbox=[5, 5, 3, 4]), r"no image has the id '1' \(text is not a number\)"),
    "no category": (coco(category_id=2, bbox=[5, 5, 3, 4]), "no category has the id 2"),
    "no annotations": (coco() | {"annotations": 3}, "annotations: Input should be a valid list"),
    "infinite id": (json.dumps(coco()).replace('"image_id": 1', '"image_id": 1e999'), "image_id"),
    "boolean image": (coco(image_id=True, bbox=[5, 5, 3, 4]), "image_id"),
    "share of a class": (coco(category_id=0.9, bbox=[5, 5, 3, 4]), "category_id"),
    "boolean run": (coco(segmentation={"size": [40, 60], "counts": [2399, True]}), "counts"),
    "NaN": (json.dumps(coco(bbox=[5, 5, 3, float("nan")])), "NaN is not a finite number"),
    "twice": (json.dumps(coco(bbox=[5, 5, 3, 4]))[:-1] + ', "annotations": []}', "the key 'annotations' stands twice"),
}


@pytest.mark.parametrize("content, message", COCO.values(), ids=COCO)
def test_coco(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((SesamError, DataIssue), match=message):
        read(tmp_path / "a.json", content)


def test_whole_numbers_with_a_point_and_flat_polygons_of_coco(tmp_path: Path) -> None:
    document = coco(segmentation=[[5, 5, 15, 5, 15, 25]])
    labels = read(tmp_path / "a.json", document)
    flat = coco(image_id=1.0, category_id=1.0, segmentation=[5, 5, 15, 5, 15, 25])
    flat["images"][0] |= {"id": 1.0, "width": 60.0, "height": 40.0}
    flat["categories"][0] |= {"id": 1.0}
    assert (labels == 0).any() and np.array_equal(read(tmp_path / "a.json", flat), labels)
    (tmp_path / "a.json").write_text(json.dumps(coco(segmentation=[])))
    (annotation,) = find_annotations(tmp_path, "folder", image_names("a")).values()
    assert +read_annotation(annotation, SPEC).left_out == {"annotations without a segmentation or box": 1}


@pytest.mark.parametrize("value", [True, "1", 0.9, 1.0, None, 10**9])
@pytest.mark.parametrize("key", ["x", "y", "cls"])
def test_clicks(key: str, value: Any, tmp_path: Path) -> None:
    click = {"x": 9, "y": 9, "cls": 1}
    assert (read(tmp_path / "a.json", {"a": [click]}, "voc") == 1).any()
    with pytest.raises(DataIssue, match=r"click 2: .* is not a whole number"):
        read(tmp_path / "a.json", {"a": [click, click | {key: value}]}, "voc")
    with pytest.raises(DataIssue, match=r"click 1: \[1, 2\]"):
        read(tmp_path / "a.json", {"a": [[1, 2]]}, "voc")


@pytest.mark.parametrize("text", ["1_0", "0.9", "nan", "１", ""])
def test_scribbles(text: str, tmp_path: Path) -> None:
    xml = "<annotation><size><width>60</width><height>40</height></size><polygon><tag>a</tag>{}</polygon></annotation>"
    point = "<point><X>{}</X><Y>9</Y></point>"
    assert (read(tmp_path / "a.xml", xml.format(point.format(9)), "voc") == 0).any()
    with pytest.raises(DataIssue, match="cannot be read as ScribbleSup"):
        read(tmp_path / "a.xml", xml.format(point.format(text)), "voc")


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(SesamError, match="the key 'b' stands twice"):
        read_json(tmp_path / "a.json")


def label_studio(**changes: Any) -> list[dict[str, Any]]:
    value = {"x": 10, "y": 10, "radiusX": 20, "radiusY": 20, "ellipselabels": ["a"]}
    result = {"type": "ellipselabels", "to_name": "image", "original_width": 60, "original_height": 40, "value": value}
    result = deepcopy(result)
    result["value"] |= changes.pop("value", {})
    return [{"data": {"image": "a.png"}, "annotations": [{"result": [result | changes]}]}]


def test_turned_images_and_two_labels_of_label_studio(tmp_path: Path) -> None:
    assert (read(tmp_path / "a.json", label_studio(image_rotation=0)) == 0).any()
    for changed, message in (
        ({"image_rotation": 90, "id": "x1"}, "task number 1: region x1: its image was turned by 90 degrees"),
        ({"image_rotation": -90}, "turned by -90 degrees"),
        ({"value": {"ellipselabels": ["a", "b"]}}, "an? ellipse with the labels a, b"),
    ):
        with pytest.raises(SesamError, match=message):
            read(tmp_path / "a.json", label_studio(**changed))


def test_forms_of_label_studio(tmp_path: Path) -> None:
    """A project's tasks, one task, JSON lines, an annotation in a storage, and the tasks of old versions."""
    (task,) = label_studio()
    (annotation,), others = task["annotations"], {"data": task["data"]}
    for content in (
        task,
        json.dumps(task) + "\n\n" + json.dumps({"data": {"image": "b.png"}, "annotations": []}),
        annotation | {"task": others},
        [others | {"completions": [annotation]}],
    ):
        assert (read(tmp_path / "a.json", content) == 0).any()
    (tmp_path / "a.json").rename(tmp_path / "a.jsonl")
    assert "a" in find_annotations(tmp_path / "a.jsonl", "folder", image_names("a"))
    for content, message in (
        (others | {"predictions": [annotation]}, "predictions, and no submitted annotation. Submit them"),
        ([{"id": 3} | others], "task 3: it has no annotations"),
        ([3], "task number 1: expected a mapping, got 3"),
        ([others | {"annotations": [{"result": [3]}]}], "task number 1: region number 1: expected a mapping"),
        ([others | {"annotations": [{"result": [annotation["result"][0] | {"type": "bitmask"}]}]}], "bitmask"),
        ([{"image": "a.png", "id": 3}], "keys id, image; expected Label Studio's tasks.*not as JSON-MIN"),
        (json.dumps(task) + "\n{", "line 2: Expecting"),
        ("", "Expecting value"),
    ):
        with pytest.raises((SesamError, DataIssue), match=message):
            read(tmp_path / "a.json", content)


def test_faulty_shapes_of_labelme(tmp_path: Path) -> None:
    def document(**changed: Any) -> dict[str, Any]:
        shape = {"label": "a", "points": [[3, 4], [20, 30]], "shape_type": "rectangle"}
        return labelme(b"") | {"shapes": [shape, shape | changed]}

    for changed, message in (
        ({"points": [[3, 4]]}, "shape 2: a rectangle of 1 points; expected 2. Draw it again"),
        ({"shape_type": "circle"}, None),
        ({"shape_type": "circle", "points": []}, "shape 2: a circle of 0 points"),
        ({"shape_type": "mask"}, "shape 2: a mask without its pixels"),
        ({"label": None}, "shape 2: label: expected a class name, got None"),
        ({"label": 3}, "'3'; classes are a, b"),
    ):
        if message is None:
            read(tmp_path / "a.json", document(**changed))
        else:
            with pytest.raises((SesamError, DataIssue), match=message):
                read(tmp_path / "a.json", document(**changed))


def labelme(content: bytes) -> dict[str, Any]:
    mask = {"label": "a", "points": [[3, 4]], "shape_type": "mask", "mask": base64.b64encode(content).decode()}
    return {"shapes": [mask], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60}


def test_masks_of_labelme(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (30, 40)).astype(np.uint8)

    def png(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    intact, palette = png(Image.fromarray(values)), Image.fromarray(values)
    outside = labelme(intact)
    outside["shapes"][0]["points"] = [[30, 4]]
    with pytest.raises(DataIssue, match=r"out of its image of 60x40 pixels: from 30, 4 to 70, 34 \(shape 1\)"):
        read(tmp_path / "a.json", outside)
    assert np.array_equal(read(tmp_path / "a.json", labelme(intact))[4:34, 3:43] == 0, values > 0)
    assert np.array_equal(
        read(tmp_path / "a.json", labelme(png(Image.fromarray(values > 0))))[4:34, 3:43] == 0, values > 0
    )
    palette.putpalette([0, 0, 0, 0, 0, 0])
    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 1
    damaged = {"mode P": png(palette), "mode RGB": png(Image.fromarray(values).convert("RGB"))}
    for message, content in {**damaged, "a damaged mask": bytes(flipped), "damaged": intact[:-30]}.items():
        with pytest.raises(DataIssue, match=message):
            read(tmp_path / "a.json", labelme(content))
