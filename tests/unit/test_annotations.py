"""Exports of annotation tools: each shape becomes the same pixels, whichever tool drew it."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import edit_params
from dataset_factories import image_names, make_label_map, whole_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as pycoco

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.drawn_prompts import BackgroundPoint, DrawnBox, DrawnPrompts, read_drawn_prompts
from sesam.artifacts.image_io import read_label
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import LabelSpec
from sesam.datasets.annotations.image_names import ImageNames
from sesam.datasets.annotations.label_studio import decode_brush
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.annotations.scribblesup import Scribbles
from sesam.datasets.annotations.whats_the_point import Clicks
from sesam.datasets.data_issues import DataIssue
from sesam.errors import SesamError
from sesam.labels import fill_boxes
from stages import prepare, weak_labels

HEIGHT, WIDTH = SHAPE = (40, 60)
CLASSES = ("left", "right", "dot")
SPEC = LabelSpec(SHAPE, CLASSES, make_label_map("folder", 3, [9]), thickness=3, radius=1)
MASK = np.zeros(SHAPE, bool)
MASK[20:30, 40:55], MASK[24, 44] = True, False


def expected() -> np.ndarray:
    """A polygon and a box of the first class, a line and a mask of the second, two points of the third."""
    labels = np.full(SHAPE, 255, np.uint8)
    labels[2:10, 3:20] = 0  # the polygon, and
    labels[30:38, 5:15] = 0  # the box
    labels[14:17, 10:41] = 1  # the line, three pixels wide
    labels[MASK] = 1
    for x, y in ((50, 5), (55, 8)):
        labels[y, x - 1 : x + 2] = labels[y - 1 : y + 2, x] = 2
    return labels


POLYGON = [(3, 2), (20, 2), (20, 10), (3, 10)]
BOX = (5, 30, 15, 38)
LINE = [(11.5, 15.5), (39.5, 15.5)]
POINTS = [(50.5, 5.5), (55.5, 8.5)]


def cvat(name: str = "train/7.png") -> str:
    """As CVAT for images 1.1 writes it: run lengths of a mask in its window, from none on."""

    def pairs(points: list) -> str:
        return ";".join(f"{x:.2f},{y:.2f}" for x, y in points)

    common = 'source="manual" occluded="0"'
    left, top, right, bottom = BOX
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>1</id></task></meta>
<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}">
<points label="dot" {common} points="{pairs(POINTS)}" z_order="0"></points>
<polygon label="left" {common} points="{pairs(POLYGON)}" z_order="0"><attribute name="sure">yes</attribute></polygon>
<box label="left" {common} xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" z_order="0"></box>
<polyline label="right" {common} points="{pairs(LINE)}" z_order="0"></polyline>
<mask label="right" {common} rle="0, 64, 1, 85" left="40" top="20" width="15" height="10" z_order="1"></mask>
<tag label="sunny" source="manual"></tag>
</image></annotations>"""


def brush(mask: np.ndarray, repeated: bool = True) -> list[int]:
    """Label Studio's brush in its simplest form: runs of one value, or every value on its own, 256 at most."""
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    bits = f"{values.size:032b}" + f"{7:05b}" + f"{7:04b}" * 4
    for same in np.split(values, np.flatnonzero(np.diff(values)) + 1):
        for start in range(0, len(same), 256):
            part = same[start : start + 256]
            written = part[:1] if repeated else part
            bits += f"{repeated:b}" + "00" + f"{len(part) - 1:08b}" + "".join(f"{value:08b}" for value in written)
    return np.packbits([bit == "1" for bit in bits]).tolist()


def label_studio() -> list[dict[str, Any]]:
    def percent(x: float, y: float) -> list[float]:
        return [100 * x / WIDTH, 100 * y / HEIGHT]

    def result(kind: str, name: str, **value: Any) -> dict[str, Any]:
        sides = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        names = {"id": "x", "type": kind, "from_name": "tag", "to_name": "image"}
        return names | sides | {"value": {**value, kind: [name]}}

    left, top, right, bottom = BOX
    (x, y), (x2, y2) = percent(left, top), percent(right, bottom)
    stroke = np.zeros(SHAPE, bool)
    stroke[14:17, 10:41] = True
    results = [
        *(result("keypointlabels", "dot", x=percent(*point)[0], y=percent(*point)[1], width=0.3) for point in POINTS),
        result("polygonlabels", "left", points=[percent(*point) for point in POLYGON], closed=True),
        result("rectanglelabels", "left", x=x, y=y, width=x2 - x, height=y2 - y, rotation=0),
        result("brushlabels", "right", format="rle", rle=brush(stroke)),  # it has no lines
        result("brushlabels", "right", format="rle", rle=brush(MASK)),
        {"type": "choices", "value": {"choices": ["sunny"]}},
    ]
    other = [result("polygonlabels", "right", points=[[0, 0], [100, 0], [100, 100]])]
    versions = [(other, False), (results, False), (other, True)]
    annotations = [{"result": drawn, "was_cancelled": cancelled} for drawn, cancelled in versions]
    task = {"id": 3, "data": {"image": "/data/upload/1/0a1b2c3d-7.png"}, "predictions": []}
    return [task | {"annotations": annotations}]


def labelme() -> dict[str, Any]:
    """The corners of its polygons are the first and last pixels of the shape, where other tools have its edges."""
    file = io.BytesIO()
    Image.fromarray(MASK[20:30, 40:55].astype(np.uint8)).save(file, "PNG")

    def shape(kind: str, name: str, points: list, **more: Any) -> dict[str, Any]:
        common = {"group_id": None, "description": "", "flags": {}, "mask": None}
        return common | {"label": name, "points": [list(point) for point in points], "shape_type": kind} | more

    left, top, right, bottom = BOX
    shapes = [
        *(shape("point", "dot", [point]) for point in POINTS),
        shape("polygon", "left", [(x - (x > 3), y - (y > 2)) for x, y in POLYGON]),
        shape("rectangle", "left", [(right, bottom), (left, top)]),
        shape("linestrip", "right", LINE),
        shape("mask", "right", [(40, 20), (54, 29)], mask=base64.b64encode(file.getvalue()).decode()),
    ]
    about = {"version": "5.8.1", "flags": {}, "imagePath": "..\\images\\7.png", "imageData": None}
    return about | {"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH}


def coco() -> dict[str, Any]:
    line, dots = expected() == 1, expected() == 2
    runs = pycoco.encode(np.asfortranarray(line.astype(np.uint8)))
    changes = np.flatnonzero(np.diff(dots.T.ravel())) + 1
    counts = np.diff([0, *changes, dots.size]).tolist()
    left, top, right, bottom = BOX
    common = {"image_id": 9, "iscrowd": 0}
    annotations = [
        {"category_id": 4, "segmentation": [[value for point in POLYGON for value in point]]},
        {"category_id": 4, "bbox": [left, top, right - left, bottom - top]},
        {"category_id": 7, "segmentation": {"counts": runs["counts"].decode(), "size": [HEIGHT, WIDTH]}},
        {"category_id": 8, "segmentation": {"counts": counts, "size": [HEIGHT, WIDTH]}, "iscrowd": 1},
    ]
    categories = [{"id": 4, "name": "left"}, {"id": 7, "name": "right"}, {"id": 8, "name": "dot", "supercategory": ""}]
    image = {"id": 9, "file_name": "images/train/7.png", "width": WIDTH, "height": HEIGHT}
    numbered = [{"id": k, **common, **one} for k, one in enumerate(annotations)]
    return {"info": {}, "images": [image], "annotations": numbered, "categories": categories}


FILES: dict[str, Callable[[], Any]] = {"cvat.xml": cvat, "label_studio.json": label_studio, "labelme.json": labelme}
FILES["coco.json"] = coco


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def draw(source: Path) -> np.ndarray:
    """An image's labels, its boxes filled."""
    (annotation,) = find_annotations(source, "folder", image_names("7", "8")).values()
    drawn = read_annotation(annotation, SPEC)
    return fill_boxes(drawn.labels, [(x.class_id, x.box) for x in drawn.prompts.boxes])


def test_labelme_leaves_out_fractions_of_pixels(tmp_path: Path) -> None:
    """Masks that are moved by hand have fractions too, also at the image's border."""
    document = labelme()
    left, top, right, bottom = BOX
    document["shapes"][2]["points"] = [(x + 0.9, y + 0.6) for x, y in document["shapes"][2]["points"]]
    corners = box_corners(left, top, right, bottom).tolist()
    document["shapes"][3] |= {"shape_type": "oriented_rectangle", "points": corners}
    document["shapes"][-1]["points"] = [[40.6, 20.4], [54.6, 29.4]]
    assert np.array_equal(draw(write(tmp_path / "labelme.json", document)), expected())
    document["shapes"][-1]["points"] = [[WIDTH - 14.4, 20], [WIDTH - 0.4, 29]]
    assert (draw(write(tmp_path / "labelme.json", document))[20:30, -1] == 1).all()


@pytest.mark.parametrize("radius", [3, 10**6])
def test_circles_of_labelme(radius: int, tmp_path: Path) -> None:
    """A circle has the pixels that it goes through; a far larger one takes no longer."""
    circle = {"label": "dot", "shape_type": "circle", "points": [[30, 20], [30, 20 + radius]]}
    drawn = draw(write(tmp_path / "labelme.json", labelme() | {"shapes": [circle]})) == 2
    rows = [3, 5, 7, 7, 7, 5, 3] if radius == 3 else [WIDTH] * HEIGHT  # of pixels
    assert np.trim_zeros(drawn.sum(1)).tolist() == rows


@pytest.mark.parametrize("name", FILES)
def test_every_shape_is_drawn_exactly(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "exported" / name, FILES[name]())
    assert np.array_equal(draw(path), expected())
    assert np.array_equal(draw(path.parent), expected())


def test_brush_bytes_of_label_studio() -> None:
    """Made with label-studio-sdk 2.1.2, its converter's mask2rle."""
    mask = np.zeros((12, 16), bool)
    mask[3:9, 2:7], mask[5, 3] = True, False
    made = [0, 0, 3, 0, 57, 27, 254, 199, 0, 194, 127, 248, 172, 3, 9, 255, 226, 176, 8, 255, 227, 0, 183, 255, 138]
    made += [192, 48, 159, 254, 43, 0, 194, 127, 248, 172, 3, 9, 255, 238, 48, 0]
    assert np.array_equal(decode_brush(bytes(made), (12, 16)), mask)


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.booleans())
def test_brushes_are_decoded(mask: np.ndarray, repeated: bool) -> None:
    assert np.array_equal(decode_brush(bytes(brush(mask, repeated)), mask.shape), mask)


def test_a_box_is_rotated_about_its_tools_center(tmp_path: Path) -> None:
    """CVAT about its center, Label Studio about its first corner, which here makes the same of two boxes."""
    turned = expected()
    turned[30:38, 5:15], turned[29:39, 6:14] = 255, 0
    path = write(tmp_path / "cvat.xml", cvat().replace("<box ", '<box rotation="90" '))
    assert np.array_equal(draw(path), turned)
    tasks = label_studio()
    (box,) = (one["value"] for one in tasks[0]["annotations"][1]["result"] if one["type"] == "rectanglelabels")
    box |= {"x": 100 * 14 / WIDTH, "y": 100 * 29 / HEIGHT, "rotation": 90}
    assert np.array_equal(draw(write(tmp_path / "label_studio.json", tasks)), turned)


def test_shapes_are_exact_in_the_widest_image(tmp_path: Path) -> None:
    """At its right end each has the pixels that it has at the left of a small one."""
    shapes = [Shape("left", "polygon", np.array(POLYGON, float)), Shape("right", "line", np.array(LINE))]
    shapes.append(Shape("dot", "point", np.array(POINTS)))

    def drawn(width: int) -> list[np.ndarray]:
        spec, right = SPEC._replace(size=(HEIGHT, width)), width - WIDTH
        moved = tuple(shape._replace(points=np.add(shape.points, (right, 0))) for shape in shapes)
        xml = f"<a><size><height>{HEIGHT}</height><width>{width}</width></size><polygon><tag>left</tag>" + "".join(
            f"<point><X>{right + x}</X><Y>{y}</Y></point>" for x, y in POLYGON
        )
        path = write(tmp_path / "7.xml", xml + "</polygon></a>")
        clicks = Clicks(tmp_path, [{"x": right + 50, "y": 5, "cls": 2}])
        return [one.draw(spec).labels for one in (Drawing(path, spec.size, moved), Scribbles(path), clicks)]

    for small, wide in zip(drawn(WIDTH), drawn(1 << 16), strict=True):
        assert (small != 255).any() and (wide[:, :-WIDTH] == 255).all()
        assert np.array_equal(wide[:, -WIDTH:], small)


def test_a_png_is_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("batch1/7", "batch1/city/8", "nobody", "val/5", "6"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / f"{name}.png")
    write(tmp_path / "json/9.json", labelme() | {"imagePath": "..\\city\\9.png"})
    write(tmp_path / "result.json", coco() | {"images": [coco()["images"][0] | {"file_name": "images/train/5.png"}]})
    found = find_annotations(tmp_path, "folder", image_names("7", "city/8", "9", "8", "5", "6", val=["5"]))
    assert {k: one.path.relative_to(tmp_path).as_posix() for k, one in found.items()} == {
        "7": "batch1/7.png",
        "city/8": "batch1/city/8.png",
        "9": "json/9.json",
        "nobody": "nobody.png",
        "5": "result.json",
        "val/5": "val/5.png",
        "6": "6.png",
    }
    (tmp_path / "city").mkdir()
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "city/7.png")
    with pytest.raises(SesamError, match=r"batch1/7\.png \(batch1/7\) and .*city/7\.png \(city/7\) both annotate 7"):
        find_annotations(tmp_path, "folder", image_names("7"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2.png", "2"),
        ("images/train/2.png", "2"),
        ("images/val/2.png", None),  # the validation image of the same name
        ("Validation/2.png", None),  # CVAT's subset
        ("somewhere/2.png", "2"),
        ("b/2.png", "b/2"),
        ("leaf%20A.png", "leaf%20A"),  # not decoded, for the name stands so
        ("leaf A.png", None),
        ("Cafe\u0301.png", "Caf\u00e9"),  # decomposed, as a Mac stores it
        ("what?.png", "what?"),
    ],
)
def test_a_name_means_the_image_that_its_path_agrees_with_most(name: str, expected: str | None) -> None:
    names = image_names("2", "b/2", "leaf%20A", "Caf\u00e9", "what?", val=["2", "3"])
    assert names.match(name) == expected


def test_names_that_label_studio_stores() -> None:
    names = image_names("Haus Zürich (2)", "x/1", "y/1")
    assert names.match("/data/upload/3/0a1b2c3d-Haus_Zürich_2.jpg", is_url=True) == "Haus Zürich (2)"
    assert names.match("/data/upload/3/0a1b2c3d-1.jpg", is_url=True) is None  # x/1 or y/1
    assert names.candidates("1.jpg") == ["x/1", "y/1"]


def studio_task(data: dict[str, Any], *results: dict[str, Any]) -> list[dict[str, Any]]:
    sides = {"original_width": WIDTH, "original_height": HEIGHT, "type": "polygonlabels"}
    corners = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["left"]}
    drawn = [{"value": corners, "to_name": "image"} | sides | result for result in results]
    return [{"data": data, "annotations": [{"result": drawn}]}]


def test_regions_of_label_studio_belong_to_the_picture_that_they_are_drawn_in(tmp_path: Path) -> None:
    def found(data: dict[str, Any], *results: dict[str, Any]) -> dict[str, int]:
        path = write(tmp_path / "tasks.json", studio_task(data, *results))
        return {k: len(x.shapes) for k, x in find_annotations(path, "folder", image_names("7", "8")).items()}

    both = {"image": "7.png", "after": "8.png"}
    assert found(both, {"to_name": "before"}, {"to_name": "after"}, {"to_name": "after"}) == {"7": 1, "8": 2}
    assert found({"images": ["7.png", "8.png"]}, {"item_index": 1}, {"item_index": 1}, {}) == {"7": 1, "8": 2}
    with pytest.raises(SesamError, match="'other' may be any"):
        found(both, {"to_name": "other"})
    assert found({"image": "7.png"}) == {"7": 0}  # submitted without a region
    negative = {"is_positive": False, "type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["left"]}}
    unlabeled = {"value": {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": []}}
    path = write(tmp_path / "tasks.json", studio_task({"image": "7.png"}, negative, unlabeled, {}))
    (drawing,) = find_annotations(path, "folder", image_names("7")).values()
    drawn = read_annotation(drawing, SPEC)
    assert drawn.shapes == 2 and +drawn.left_out == {"regions without a label": 1}
    assert drawn.prompts.background_points == (BackgroundPoint(0, (0, 0)),)
    path = write(tmp_path / "min.json", [{"image": "7.png", "id": 1, "label": []}])
    with pytest.raises(SesamError, match="JSON-MIN"):
        find_annotations(path, "folder", image_names("7"))


def test_a_map_says_what_names_mean(tmp_path: Path) -> None:
    mapped = {"truck": "c1", "dot": None}
    spec = SPEC._replace(label_map=make_label_map("folder", 3, [9], mapped))
    document = labelme()
    document["shapes"][3]["label"] = "truck"
    (drawing,) = find_annotations(write(tmp_path / "7.json", document), "folder", image_names("7")).values()
    drawn = read_annotation(drawing, spec)
    assert set(np.unique(drawn.labels)) == {0, 1, 255}
    assert drawn.left_out["shapes that dataset.map gives no class"] == len(POINTS)


@pytest.mark.parametrize("path", ["instances_val.json", "instances_val2017.json", "valid/_annotations.coco.json"])
def test_a_name_of_both_splits_is_of_the_files_split(path: str, tmp_path: Path) -> None:
    document = coco() | {"images": [{"id": 7, "file_name": "7.png"}], "annotations": []}
    write(tmp_path / path, document)
    assert "7" in find_annotations(tmp_path, "folder", image_names("7", val="8"))
    assert set(find_annotations(tmp_path, "folder", image_names("7", val="7"))) & {"7", "7.png"} == set()
    write(tmp_path / "instances_train.json", document)
    assert "7" in find_annotations(tmp_path, "folder", image_names("7", val="7"))


def test_cvats_yolo_of_another_split(tmp_path: Path) -> None:
    write(tmp_path / "obj.names", "left")
    for split in ("train", "valid"):
        write(tmp_path / f"obj_{split}_data/{split}.txt", "0 0.5 0.5 0.1 0.1")
    assert set(find_annotations(tmp_path, "folder", image_names("train", "valid"))) == {"train", "valid/valid"}


def test_an_export_without_shapes_of_an_image_gives_way(tmp_path: Path) -> None:
    """As each annotator's export of a whole project."""
    empty = coco() | {"annotations": []}
    for first, second in ((coco(), empty), (empty, coco())):
        write(tmp_path / "a.json", first)
        write(tmp_path / "b.json", second)
        (annotation,) = find_annotations(tmp_path, "folder", image_names("7")).values()
        assert (read_annotation(annotation, SPEC).labels == expected())[MASK].all()


def test_files_that_no_reader_takes_are_told(folder_dataset: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, runtime__num_workers=1)
    prepare.main()
    image = Path(Manifest.load().train[0].image)
    for name in ("task.zip", "0.tif", "README.md"):
        write(Path("data/corrections") / name, "x")
    shutil.copy(image, f"data/corrections/{image.name}.bmp")  # the photograph
    weak_labels.main()
    assert "or classes.txt: 2 (0.tif, task.zip)" in capsys.readouterr().err
    write(Path("data/corrections/0.txt"), "0 0.5 0.5 0.1 0.1")
    write(Path("data/corrections/notes.txt"), "nothing")
    (Path("data/corrections/1.png")).write_bytes(Path("mine/labels/train/1.png").read_bytes())
    Image.fromarray(np.full(SHAPE, 1, np.uint8)).save("data/corrections/1.png")
    weak_labels.main()
    assert "or classes.txt: 3 (0.tif, task.zip, 0.txt)" in capsys.readouterr().err


def test_class_names_of_a_mac(tmp_path: Path) -> None:
    """Which decomposes letters."""
    spec = SPEC._replace(classes=("caf\u00e9", "right", "dot"))
    path = write(tmp_path / "7.json", json.dumps(labelme()).replace('"left"', '"cafe\u0301"'))
    (drawing,) = find_annotations(path, "folder", image_names("7")).values()
    assert (read_annotation(drawing, spec).labels == 0).any()


def test_a_box_without_an_area_is_told(tmp_path: Path) -> None:
    shape = '<box label="left" xtl="5.5" ytl="5.5" xbr="5.5" ybr="9" />'
    text = f'<annotations><image name="7.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image></annotations>'
    (drawing,) = find_annotations(write(tmp_path / "a.xml", text), "folder", image_names("7")).values()
    drawn = read_annotation(drawing, SPEC)
    assert not drawn.prompts.boxes and +drawn.left_out == {"boxes without a pixel": 1}


def test_what_tools_export_beside_their_annotations(tmp_path: Path) -> None:
    """Label Studio's notes, what is refused by its name, and an empty bbox."""
    write(tmp_path / "notes.json", {"categories": [{"id": 0, "name": "left"}], "info": {}})
    document = coco()
    document["annotations"][0]["bbox"] = []
    write(tmp_path / "coco.json", document)
    assert "7" in find_annotations(tmp_path, "folder", image_names("7"))
    refused(write(tmp_path / "7.json", {"categories": {"label": {}}, "items": []}), "Datumaro's JSON")
    polygon = "<object><name>left</name><polygon><pt><x>1</x><y>1</y></pt></polygon></object>"
    refused(write(tmp_path / "7.xml", f"<annotation>{polygon}</annotation>"), "LabelMe's XML")
    refused(write(tmp_path / "7.json", {"title": "x"}), "or keep it elsewhere")


def test_names_may_be_numbers_or_colors(tmp_path: Path) -> None:
    label_map = make_label_map("folder", 3, [9], {"1": "c1", "#ff0000": "c2"})
    assert label_map.names["1"] == 1 and label_map.names["#ff0000"] == 2
    document = json.dumps(labelme()).replace('"left"', '"1"').replace('"dot"', '"#ff0000"')
    path = write(tmp_path / "7.json", document.replace('"right"', '"1"'))
    (drawing,) = find_annotations(path, "folder", image_names("7")).values()
    labels = read_annotation(drawing, SPEC._replace(label_map=label_map)).labels
    assert np.array_equal(labels == 2, expected() == 2) and ((labels == 1) >= (expected() == 1)).all()


DRAWN = st.tuples(  # name, kind, and a box around the shape, that may be empty or outside
    st.sampled_from(["left", "right", "dot", "unicorn", None]),
    st.sampled_from(["polygon", "box", "point", "ellipse"]),
    st.tuples(
        st.integers(-30, 70), st.integers(-30, 60), st.sampled_from([0, 1, 9, 40]), st.sampled_from([0, 1, 9, 40])
    ),
)


def exported(tool: str, shapes: list) -> Any:
    """What a tool writes of these shapes; None: a region for which no name was chosen, where it has such."""

    def ends(box: tuple) -> tuple:
        return box[0], box[1], box[0] + box[2], box[1] + box[3]

    if tool == "labelme":
        kinds = {"box": "rectangle", "ellipse": "circle"}

        def points(kind: str, box: tuple) -> list:
            x, y, x2, y2 = ends(box)
            corners = {"point": [[x, y]], "polygon": [[x, y], [x2, y], [x2, y2]]}
            return corners.get(kind, [[x, y], [x2, y2]])

        drawn = [{"label": n or "", "shape_type": kinds.get(k, k), "points": points(k, box)} for n, k, box in shapes]
        return {"imagePath": "7.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": drawn}
    if tool == "coco":
        drawn = []
        for name, kind, (x, y, width, height) in shapes:
            polygon = [x, y, x + width, y, x + width, y + height]
            geometry = {"bbox": [x, y, width, height]} if kind == "box" else {"segmentation": [polygon]}
            category = {} if name is None else {"category_id": name}
            drawn.append({"image_id": "a", **category, **geometry})
        categories = [{"id": name, "name": name} for name in ("left", "right", "dot", "unicorn")]
        return {"images": [{"id": "a", "file_name": "7.png"}], "annotations": drawn, "categories": categories}
    if tool == "cvat":
        elements = []
        for name, kind, box in shapes:
            x, y, x2, y2 = ends(box)
            points = {"polygon": f"{x},{y};{x2},{y};{x2},{y2}", "point": f"{x},{y}"}.get(kind)
            rest = f'points="{points}"' if points else f'xtl="{x}" ytl="{y}" xbr="{x2}" ybr="{y2}"'
            if kind == "ellipse":
                rest = f'cx="{x}" cy="{y}" rx="{box[2]}" ry="{box[3]}"'
            elements.append(f'<{kind + "s" * (kind == "point")} label="{name or ""}" {rest}/>')
        image = f'<image name="7.png" height="{HEIGHT}" width="{WIDTH}">{"".join(elements)}</image>'
        return f"<annotations>{image}</annotations>"
    results = []
    for name, kind, (x, y, width, height) in shapes:
        tag = {"point": "keypoint", "box": "rectangle"}.get(kind, kind) + "labels"
        numbers = {"x": x, "y": y, "width": width, "height": height, "radiusX": width, "radiusY": height}
        points = [[x, y], [x + width, y], [x + width, y + height]]
        value = {**numbers, "points": points, tag: [] if name is None else [name]}
        sides = {"original_width": 100, "original_height": 100}
        results.append({"type": tag, "to_name": "image", "value": value, **sides})
    return [{"data": {"image": "7.png"}, "annotations": [{"result": results}]}]


@pytest.mark.parametrize("tool", ["labelme", "coco", "cvat", "label_studio"])
@settings(deadline=None)
@given(shapes=st.lists(DRAWN, max_size=5))
def test_no_shape_is_lost_in_silence(tmp_path_factory, tool: str, shapes: list) -> None:
    """Each shape is drawn, or counted among those left out, or the file is refused with the reason."""
    path = tmp_path_factory.mktemp("export") / f"7.{'xml' if tool == 'cvat' else 'json'}"
    write(path, exported(tool, shapes))
    size = (100, 100) if tool == "label_studio" else SHAPE
    (annotation,) = find_annotations(path, "folder", image_names("7")).values()
    unknown = {name for name, *_ in shapes} - set(CLASSES)
    try:
        drawn = read_annotation(annotation, SPEC._replace(size=size))
    except DataIssue as problem:
        named = unknown - ({None} if tool in ("coco", "label_studio") else set())
        small = all(max(map(abs, (*box, box[0] + box[2], box[1] + box[3]))) <= 1 for *_, box in shapes)
        assert "unicorn" in named or None in named or (small and "from 0 to 1" in str(problem))
        return
    assert "unicorn" not in unknown
    empty = sum(count for kind, count in drawn.left_out.items() if kind.endswith("without a pixel"))
    assert drawn.shapes + drawn.left_out["regions without a label"] == len(shapes)
    assert isinstance(annotation, Drawing)
    drawn_boxes = [(x.name, x.box(size)) for x in annotation.shapes if x.kind == "box"]
    boxes = [DrawnBox(CLASSES.index(name), box) for name, box in drawn_boxes if box]
    assert list(drawn.prompts.boxes) == boxes
    filled = [shape for shape in annotation.shapes if shape.kind != "box"]
    masks = [(shape.name, whole_mask(shape, size, SPEC.thickness, SPEC.radius)) for shape in filled]
    assert empty == sum(not mask.any() for _, mask in masks) + len(drawn_boxes) - len(boxes)
    expected = np.full(size, 255, np.uint8)
    for name, mask in masks:
        expected[mask] = CLASSES.index(name)
    assert np.array_equal(drawn.labels, expected)


def test_folders_of_masks(tmp_path: Path) -> None:
    """CVAT's "Segmentation mask 1.1", and a folder of binary masks per class."""
    left, right = expected() == 0, expected() == 1
    colors = np.where(left[..., None], (250, 50, 83), 0) + np.where(right[..., None], (51, 221, 255), 0)
    write(
        tmp_path / "cvat/labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleft:250,50,83::\nright:51,221,255::",
    )
    for folder in ("SegmentationClass", "SegmentationObject"):
        (tmp_path / "cvat" / folder).mkdir()
        Image.fromarray(colors.astype(np.uint8)).save(tmp_path / f"cvat/{folder}/7.png")
    for name, mask in (("left", left), ("right", right)):
        (tmp_path / "binary" / name).mkdir(parents=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"binary/{name}/7.png")
    for source in ("cvat", "binary"):
        (annotation,) = find_annotations(tmp_path / source, "folder", image_names("7"), CLASSES).values()
        assert np.array_equal(read_annotation(annotation, SPEC).labels, np.where(expected() == 2, 255, expected()))
    write(tmp_path / "cvat/labelmap.txt", "left:250,50,83::\nright:250,50,83::")
    with pytest.raises(SesamError, match="left and right have one color"):
        find_annotations(tmp_path / "cvat", "folder", image_names("7"), CLASSES)
    write(tmp_path / "cvat/labelmap.txt", "left")
    with pytest.raises(SesamError, match="expected NAME:R,G,B"):
        find_annotations(tmp_path / "cvat", "folder", image_names("7"), CLASSES)
    found = find_annotations(tmp_path / "binary", "folder", image_names("right/7"), CLASSES)
    assert not isinstance(found["right/7"], Drawing), "images in folders that are called as classes"
    write(tmp_path / "binary/Thumbs.db", "x")
    write(tmp_path / "binary/__MACOSX/left/7.png", "x")
    for name in ("left", "right"):
        alone = tmp_path / "alone" / name
        alone.parent.mkdir()
        shutil.copytree(tmp_path / f"binary/{name}", alone)
        (annotation,) = find_annotations(alone.parent, "folder", image_names("7"), CLASSES).values()
        assert np.array_equal(
            read_annotation(annotation, SPEC).labels == CLASSES.index(name), {"left": left}.get(name, right)
        )
        shutil.rmtree(alone.parent)
    transparent = np.dstack([np.full((*SHAPE, 3), 255, np.uint8), left * np.uint8(255)])
    Image.fromarray(transparent).save(tmp_path / "binary/left/7.png")
    (annotation,) = find_annotations(tmp_path / "binary", "folder", image_names("7"), CLASSES).values()
    with pytest.raises(DataIssue, match="transparent pixels"):
        read_annotation(annotation, SPEC)
    (tmp_path / "binary/left/again").mkdir()
    shutil.copy(tmp_path / "binary/left/7.png", tmp_path / "binary/left/again/7.png")
    with pytest.raises(SesamError, match="both annotate 7"):  # neither is overwritten in silence
        find_annotations(tmp_path / "binary", "folder", image_names("7"), CLASSES)
    shutil.rmtree(tmp_path / "binary/left/again")
    Image.fromarray(np.arange(6, dtype=np.uint8)[None]).save(tmp_path / "binary/left/7.png")
    (annotation,) = find_annotations(tmp_path / "binary", "folder", image_names("7"), CLASSES).values()
    with pytest.raises(DataIssue, match="more than two values"):
        read_annotation(annotation, SPEC)


def test_masks_per_class_that_overlap_or_have_no_zero(tmp_path: Path) -> None:
    road, car = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    road[10:20], car[15:30] = 255, 255
    for name, mask in (("left", car), ("right", road)):
        (tmp_path / name).mkdir()
        Image.fromarray(mask).save(tmp_path / f"{name}/7.png")

    def read() -> Any:
        (annotation,) = find_annotations(tmp_path, "folder", image_names("7"), CLASSES).values()
        return read_annotation(annotation, SPEC)

    drawn = read()
    assert drawn.left_out == {"pixels in masks of several classes": 5 * WIDTH}
    assert (drawn.labels[10:15] == 1).all() and (drawn.labels[20:30] == 0).all()
    assert (drawn.labels[15:20] == 255).all() and (drawn.labels == 255).mean() > 0.5
    palette = Image.fromarray((road > 0).astype(np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)  # the index is the value, whatever its color
    palette.save(tmp_path / "right/7.png")
    assert (read().labels[10:15] == 1).all() and (read().labels[:10] == 255).all()
    Image.fromarray(np.where(road > 0, 2, 1).astype(np.uint8)).save(tmp_path / "right/7.png")
    with pytest.raises(DataIssue, match=r"right/7\.png with the values 1 and 2; expected 0 where the class is not"):
        read()
    Image.fromarray(road[1:]).save(tmp_path / "right/7.png")
    with pytest.raises(DataIssue):
        read()


def test_another_xml_is_not_read_as_strokes(tmp_path: Path) -> None:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    refused(write(tmp_path / "7.xml", f"<annotation>{size}<lesion/></annotation>"), "not its XML")


@pytest.mark.parametrize("name", ["photograph", "label"])
def test_a_photograph_is_known_by_its_bytes(name: str, tmp_path: Path) -> None:
    """Not by another annotation of the image beside it."""
    path = tmp_path / "7.png"
    Image.fromarray(np.full(SHAPE, name == "label", np.uint8)).save(path)
    record = ImageRecord("7", "x/7.png", *SHAPE, sha256(path) if name == "photograph" else "0" * 64)
    found = find_annotations(tmp_path, "folder", ImageNames([record]))
    assert list(found) == ([] if name == "photograph" else ["7"])


UPLOAD = "/data/upload/1/0a1b2c3d-7.png"  # Label Studio puts files into a folder of the project's number


@pytest.mark.parametrize(
    ("name", "ids", "matching"),
    [
        ("7.png", "7", "7"),
        ("some/where/7.jpg", "7", "7"),
        ("C:\\images\\7.jpg", "7", "7"),
        ("s3://lab/images/city/a_1_leftImg8bit.png?token=x", "city/a_1", "city/a_1"),
        ("/data/local-files/?d=street%20photos/city/b.jpg", "city/b b", "city/b"),
        ("city/b.jpg", "city/b b", "city/b"),
        ("b.jpg", "city/b b", "b"),
        ("scan.1", "scan", None),
        ("scan.1.png", "scan scan.1", "scan.1"),
        ("17.png", "7", None),
        ("", "7", None),
        (UPLOAD, "1/7 2/7", None),
        (UPLOAD, "1/7 7", "7"),
        (UPLOAD, "1/0a1b2c3d-7 7", "1/0a1b2c3d-7"),
    ],
)
def test_names_match_image_ids(name: str, ids: str, matching: str | None) -> None:
    assert image_names(*ids.split()).match(name, is_url=True) == matching


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("IMG_1.JPG", "only in upper and lower case, .*: IMG_1.JPG: img_1"),
        ("city/leaf%201.jpg", "blanks, - or _: city/leaf%201.jpg: city/leaf 1"),
        ("img 1 .jpg", "blanks, - or _: img 1 .jpg: img_1"),
        ("photos/City/Leaf 1.png", "case, .*: photos/City/Leaf 1.png: city/leaf 1"),
        ("/data/upload/1/0a1b2c3d-IMG_1.jpg", "case, .*: /data/upload/1/0a1b2c3d-IMG_1.jpg: img_1"),
        ("leaf 1.png", "without the image's folder: leaf 1.png: city/leaf 1"),
        ("/data/upload/1/0a1b2c3d-leaf_1.png", "without the image's folder: .*: city/leaf 1"),
        ("0a1b2c3d-a_b.png", "names of several images: 0a1b2c3d-a_b.png: a b or a_b"),
        ("images/val/both.png", None),
        ("images/val/IMG_1.JPG", None),
        ("Both.png", None),  # the validation image
        ("7.png", None),  # also that
        ("unicorn.png", None),
    ],
)
def test_names_of_no_image_are_explained(name: str, told: str | None) -> None:
    names = image_names("img_1", "city/leaf 1", "a b", "a_b", "both", "city/7", val=["Both", "7"])
    assert names.match(name, is_url="upload" in name) is None
    issues = [f"{kind.value[0]}: {text}" for kind, text, _ in names.explain([name]).values()]
    assert len(issues) == (told is not None) and all(re.search(told or "", text) for text in issues)


def spoiled(document: Any, path: tuple = ()) -> Iterator[Any]:
    """The document with one fault each: a key removed, or a value of another type; of a list the first three."""
    inner = reduce(getitem, path, document)
    for key in inner if isinstance(inner, dict) else range(min(3, len(inner))) if isinstance(inner, list) else ():
        for change in ("remove", None, {"wrong": 1}, -3.5):
            copy = deepcopy(document)
            holder = reduce(getitem, path, copy)
            holder[key] = change
            if change == "remove":
                del holder[key]
            yield copy
        yield from spoiled(document, (*path, key))


XML_FAULTS = [
    ("<annotations>", "<annotations><track/>"), ("</image>", ""), ('width="60"', ""), ('width="60"', 'width="61"'),
    ('height="40"', 'height="0"'), ('height="40"', 'height="x"'), ('height="40"', 'height="99999999999"'),
    ('name="train/7.png"', ""), ('label="left"', ""), ('label="left"', 'label="unicorn"'), (';20.00', ";twenty"),
    ("3.00,2.00", "3.00"), ("3.00,2.00", "3.00,2.00,1.00"), ('xtl="5"', ""), ('ybr="38"', 'ybr="low"'),
    ('rle="0', 'rle="-1'), ('rle="0', 'rle="0,0,7'), ('rle="0', 'rle="'), ('left="40"', 'left="50"'),
    ('left="40"', 'left="-1"'), ('top="20"', 'top="1e3"'), ('z_order="1"', 'z_order="up"'),
    ("<tag ", '<ellipse label="left" cx="1" cy="1" rx="1"/><tag '), ("<mask", "<cuboid/><mask"),
]  # fmt: skip


@pytest.mark.parametrize("fault", XML_FAULTS, ids=lambda fault: " -> ".join(fault))
def test_faulty_cvat(fault: tuple[str, str], tmp_path: Path) -> None:
    assert fault[0] in cvat()
    refused(write(tmp_path / "cvat.xml", cvat().replace(*fault)))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_faulty_json(name: str, tmp_path: Path) -> None:
    refusals = 0
    for value in spoiled(FILES[name]()):
        path = write(tmp_path / name, value)
        try:
            labels = draw(path)
        except (SesamError, DataIssue, ValueError) as problem:
            if isinstance(problem, ValueError):
                assert "unpack" in str(problem)  # an image fewer, or none
            else:
                assert name in str(problem)
            refusals += 1
        else:
            assert labels.shape == SHAPE and set(np.unique(labels)) <= {0, 1, 2, 255}
    assert refusals >= 20


@pytest.mark.parametrize("counts", [[2**70], [2**63 - 1, 2**63 - 1, 2 + WIDTH * HEIGHT], [-1, WIDTH * HEIGHT + 1], []])
def test_run_lengths_that_do_not_fit(counts: list[int], tmp_path: Path) -> None:
    """Nor where their sum, as a machine's integers have it, does."""
    document = coco()
    document["annotations"][-1]["segmentation"]["counts"] = counts
    refused(write(tmp_path / "coco.json", document))
    start = cvat().index('rle="') + 5
    text = cvat()[:start] + ",".join(map(str, counts)) + cvat()[cvat().index('"', start) :]
    refused(write(tmp_path / "cvat.xml", text))


def test_a_mask_of_another_size_is_refused_before_it_is_made(tmp_path: Path) -> None:
    document = coco()
    document["annotations"][-1]["segmentation"] = {"size": [60000, 60000], "counts": [60000**2]}
    refused(write(tmp_path / "coco.json", document), "a mask of 60000x60000 pixels")
    larger = cvat().replace('width="15" height="10"', 'width="60000" height="60000"')
    larger = larger.replace('rle="', f'rle="{60000**2}" counts="')
    refused(write(tmp_path / "cvat.xml", larger), "a mask that reaches out of its image")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_two_of_one_id_in_coco(key: str, tmp_path: Path) -> None:
    document = coco()
    document[key].append(document[key][0] | {"file_name": "8.png", "name": "other"})
    refused(write(tmp_path / "coco.json", document), "of one id")


def test_keypoints_of_coco_are_not_taken_for_their_box(tmp_path: Path) -> None:
    """They are a skeleton's. Where a segmentation has the same object's pixels, they are left out."""
    document = coco()
    _, box, run_lengths, _ = document["annotations"]
    for annotation in (box, run_lengths):
        annotation["keypoints"] = [10, 10, 2]
    refused(write(tmp_path / "coco.json", document), "keypoints")
    (drawing,) = find_annotations(tmp_path, "folder", image_names("7")).values()
    assert isinstance(drawing, Drawing) and len(drawing.shapes) == 3
    empty = [annotation | {"segmentation": []} for annotation in document["annotations"]]  # as Datumaro writes it
    refused(write(tmp_path / "coco.json", document | {"annotations": empty}), "keypoints")


def refused(path: Path, message: str = "") -> None:
    with pytest.raises((SesamError, DataIssue), match=f"{path.name}.*{message}"):
        draw(path)


def test_exports_of_several_tools_are_read_together(folder_dataset: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, weak_labels__scribble__thickness=3, weak_labels__point__radius=1)
    edit_params(folder_dataset, weak_labels__path="drawn", runtime__num_workers=1)
    prepare.main()
    xml = write(Path("drawn/one.xml"), cvat("0.png").replace('"dot"', '"right"'))
    document = json.dumps(labelme() | {"imagePath": "1.png"}).replace('"dot"', '"right"')
    write(Path("drawn/1.json"), document)
    shutil.copy(Manifest.load().train[1].image, "drawn/1.png")  # labelme's image
    Image.fromarray(np.full(SHAPE, 1, np.uint8)).save("drawn/2.png")
    weak_labels.main()
    labels = [read_label(Path(f"data/weak/{k}.png")) for k in range(3)]
    boxes = [read_drawn_prompts(Path("data/weak"), record, 2) for record in Manifest.load().train[:2]]
    assert boxes == [DrawnPrompts((DrawnBox(0, BOX),))] * 2
    filled = fill_boxes(labels[0], [(x.class_id, x.box) for x in boxes[0].boxes])
    assert np.array_equal(filled, np.where(expected() == 2, 1, expected())) and np.array_equal(labels[0], labels[1])
    assert (labels[2] == 1).all()
    write(xml, xml.read_text().replace("<tag", "<cuboid/><tag"))
    write(Path("drawn/1.json"), document.replace('"right"', '"Rigth"', 1))
    with pytest.raises(SesamError, match=r"cannot be read: 1(.|\n)*one.xml: cuboid") as problem:
        weak_labels.main()
    assert "names that are not a class: 1" in str(problem.value)
    assert "'Rigth' (did you mean right?); classes are left, right" in str(problem.value)


def test_boxes_beside_scribbles_prompt(tmp_path: Path) -> None:
    """Two files of an image, one with boxes alone; two that both label it are a fault."""
    Image.fromarray(expected()).save(tmp_path / "7.png")
    document = coco()
    document["annotations"] = document["annotations"][1:2]
    write(tmp_path / "boxes/coco.json", document)
    (annotation,) = find_annotations(tmp_path, "folder", image_names("7")).values()
    drawn = read_annotation(annotation, SPEC)
    assert np.array_equal(drawn.labels, expected()) and drawn.prompts.boxes == (DrawnBox(0, BOX),)
    write(tmp_path / "boxes/coco.json", coco())
    with pytest.raises(SesamError, match="both annotate 7"):
        find_annotations(tmp_path, "folder", image_names("7"))
    document = labelme()
    document["shapes"] = document["shapes"][3:4]
    shutil.rmtree(tmp_path / "boxes")
    write(tmp_path / "7.json", document)
    (annotation,) = find_annotations(tmp_path, "folder", image_names("7")).values()
    assert read_annotation(annotation, SPEC).prompts.boxes == (DrawnBox(0, BOX),)
    write(tmp_path / "8.json", document)  # a copy, in which the image's name was not changed
    with pytest.raises(SesamError, match=r"8.json .*both annotate 7.*correct the image's name in \S*8\.json"):
        find_annotations(tmp_path, "folder", image_names("7", "8"))
    write(tmp_path / "7.json", document | {"shapes": []})
    (tmp_path / "7.png").rename(tmp_path / "8.jpg.png")
    with pytest.raises(SesamError, match=r"8.json .*both annotate 7"):
        find_annotations(tmp_path, "folder", image_names("7", "8"))
    (tmp_path / "8.json").unlink()
    assert set(find_annotations(tmp_path, "folder", image_names("7", "8"))) == {"7", "8"}


def test_a_second_label_of_a_region_is_mapped_to_nothing(tmp_path: Path) -> None:
    """As Label Studio's attributes, and a shape that a later one covers is told."""
    points = {"points": [[0, 0], [50, 0], [50, 50]]}
    regions = [{"id": "a", "value": points | {"polygonlabels": [name]}} for name in ("left", "occluded")]
    spec = SPEC._replace(label_map=make_label_map("folder", 3, [9], {"occluded": None}))
    path = write(tmp_path / "tasks.json", studio_task({"image": "7.png"}, *regions))
    (drawing,) = find_annotations(path, "folder", image_names("7")).values()
    drawn = read_annotation(drawing, spec)
    assert (drawn.labels == 0).any() and not +drawn.left_out
    regions[1]["value"]["polygonlabels"] = ["right"]
    path = write(tmp_path / "tasks.json", studio_task({"image": "7.png"}, *regions))
    (drawing,) = find_annotations(path, "folder", image_names("7")).values()
    left_out = read_annotation(drawing, SPEC).left_out
    assert json.dumps(+left_out) == '{"shapes that later ones cover wholly": 1}'  # as metrics/annotations.json
