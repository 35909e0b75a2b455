"""VIA, GeoJSON, VOC's detection XML and YOLO's text: polygons, lines and points by their pixels, boxes by corners."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_factories import image_names, whole_mask
from hypothesis import given
from hypothesis import strategies as st

from sesam.datasets.annotation_shapes import Shape
from sesam.datasets.annotations.registry import find_annotations, is_annotated, read_annotation
from sesam.datasets.data_issues import DataIssue
from sesam.errors import SesamError
from tests.unit.test_annotations import HEIGHT, LINE, POINTS, POLYGON, SHAPE, SPEC, WIDTH, spoiled, write

OUTER, HOLE = [(30, 20), (50, 20), (50, 36), (30, 36)], [(34, 24), (40, 24), (40, 30), (34, 30)]


def expected(with_hole: bool = True) -> np.ndarray:
    """A polygon of the first class, a line and a polygon with a hole of the second, two points of the third."""
    labels = np.full(SHAPE, 255, np.uint8)
    labels[2:10, 3:20] = 0
    labels[14:17, 10:41] = 1
    labels[20:36, 30:50] = 1
    labels[24:30, 34:40] = 255 if with_hole else 1
    for x, y in ((50, 5), (55, 8)):
        labels[y, x - 1 : x + 2] = labels[y - 1 : y + 2, x] = 2
    return labels


def via() -> dict[str, Any]:
    """A project of VIA 2, without a hole, for it has none."""

    def region(chosen: str, **shape: Any) -> dict[str, Any]:
        return {"shape_attributes": shape, "region_attributes": {"kind": chosen}}

    def many(kind: str, points: list) -> dict[str, Any]:
        xs, ys = zip(*points, strict=True)
        return {"name": kind, "all_points_x": list(xs), "all_points_y": list(ys)}

    regions = [
        region("left", **many("polygon", POLYGON)),
        region("right", **many("polyline", LINE)),
        region("right", **many("polygon", OUTER)),
        *(region("dot", name="point", cx=x, cy=y) for x, y in POINTS),
    ]
    image = {"filename": "train/7.png", "size": 1234, "regions": regions, "file_attributes": {}}
    metadata = {"train/7.png1234": image, "8.png9": image | {"filename": "8.png", "regions": []}}
    return {"_via_settings": {}, "_via_img_metadata": metadata, "_via_attributes": {"region": {}}}


def geojson() -> dict[str, Any]:
    """As QuPath exports it: rings end where they begin."""

    def feature(name: str, kind: str, coordinates: Any) -> dict[str, Any]:
        about = {"objectType": "annotation", "name": "my region", "classification": {"name": name, "color": [9, 9, 9]}}
        return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": about}

    features = [
        feature("left", "Polygon", [[*POLYGON, POLYGON[0]]]),
        feature("right", "LineString", LINE),
        feature("right", "MultiPolygon", [[[*OUTER, OUTER[0]], [*HOLE, HOLE[0]]]]),
        feature("dot", "MultiPoint", POINTS[:1]),
        feature("dot", "Point", [*POINTS[1], 0]),
    ]
    return json.loads(json.dumps({"type": "FeatureCollection", "features": features}))


def voc() -> str:
    box = "<bndbox><xmin>6</xmin><ymin>31</ymin><xmax>15</xmax><ymax>38</ymax></bndbox>"
    about = f"<folder>x</folder><filename>7.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    extra = "<pose>Unspecified</pose><difficult>1</difficult>"
    other = box.replace("<xmin>6", "<xmin>1").replace("<ymin>31", "<ymin>1")
    objects = (("left", extra + box), ("right", other))
    objects = "".join(f"<object><name>{name}</name>{content}</object>" for name, content in objects)
    return f"<annotation>{about}{objects}</annotation>"


def yolo() -> str:
    points = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in POLYGON)
    return f"0 {points}\n\n1 0.5 0.75 0.2 0.5\n"


FILES: dict[str, Callable[[], Any]] = {"via.json": via, "7.geojson": geojson, "7.xml": voc, "labels/7.txt": yolo}
YAML = "path: ../x\nnames:\n  0: left\n  1: right\n"


def find(path: Path, *ids: str) -> dict[str, Any]:
    return find_annotations(path, "folder", image_names(*(ids or ("7",))))


def refused(path: Path, message: str) -> None:
    with pytest.raises((SesamError, DataIssue), match=message) as problem:
        for drawing in find(path).values():
            read_annotation(drawing, SPEC)
    assert path.is_dir() or path.name in str(problem.value)


@pytest.mark.parametrize(("name", "with_hole"), [("via.json", False), ("7.geojson", True), ("7.json", True)])
def test_polygons_lines_and_points_are_drawn_exactly(name: str, with_hole: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "exported" / name, geojson() if with_hole else via())
    for source in (path, path.parent):
        drawn = read_annotation(find(source)["7"], SPEC)
        assert np.array_equal(drawn.labels, expected(with_hole)) and drawn.shapes == 5 and not +drawn.left_out
    assert is_annotated(path.parent)


@pytest.mark.parametrize("tool", ["coco", "voc"])
def test_boxes_that_cvat_turned(tmp_path: Path, tool: str) -> None:
    """It writes the box before it is turned, and the angle beside it; by 90 degrees 20 x 8 become 8 x 20."""
    if tool == "coco":
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 12, 20, 8], "attributes": {"rotation": 90.0}}
        other = box | {"id": 2, "image_id": 2, "attributes": ["another tool's"]}
        images, categories = (
            [{"id": 1, "file_name": "7.png"}, {"id": 2, "file_name": "x.png"}],
            [{"id": 1, "name": "left"}],
        )
        text = json.dumps(
            {"images": images, "categories": categories, "annotations": [box | {"segmentation": []}, other]}
        )
        path = write(tmp_path / "coco.json", text)
    else:
        sides = "<xmin>11</xmin><ymin>13</ymin><xmax>30</xmax><ymax>20</ymax>"
        rotation = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
        point = "<point><x>20</x><y>16</y></point>"  # of VOC's actions, not of a stroke
        turned = f"<object><name>left</name><bndbox>{sides}</bndbox>{rotation}{point}</object>"
        path = write(tmp_path / "7.xml", f"<annotation><filename>7.png</filename>{turned}</annotation>")
    annotation = find_annotations(path, "folder", image_names("7"), SPEC.classes)["7"]
    (entry,) = read_annotation(annotation, SPEC).prompts.boxes
    assert entry.box == (16, 6, 24, 26)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=3, max_size=8), st.integers(1, 12))
def test_a_hole_is_what_a_polygon_of_it_would_fill(outline: list, side: int) -> None:
    points, hole = np.array(outline, float), np.array([[20, 10], [20 + side, 10], [20 + side, 22], [20, 22]], float)
    filled = [whole_mask(Shape("a", "polygon", one), SHAPE) for one in (points, hole)]
    assert filled[1].sum() == side * 12
    cut = whole_mask(Shape("a", "polygon", points, holes=(hole, hole[:2])), SHAPE)  # two points are not a hole
    assert np.array_equal(cut, filled[0] & ~filled[1])


def test_parts_of_a_multipolygon_have_their_own_holes(tmp_path: Path) -> None:
    """An island in the hole of another part remains, whichever comes first."""
    island = [(36, 26), (38, 26), (38, 28), (36, 28)]
    want = np.full(SHAPE, 255, np.uint8)
    want[20:36, 30:50], want[24:30, 34:40], want[26:28, 36:38] = 1, 255, 1
    for parts in ([[OUTER, HOLE], [island]], [[island], [OUTER, HOLE]]):
        document = geojson()
        document["features"] = [document["features"][2]]
        document["features"][0]["geometry"]["coordinates"] = parts
        path = write(tmp_path / "7.json", document)
        assert np.array_equal(read_annotation(find(path)["7"], SPEC).labels, want)


def test_all_forms_of_via(tmp_path: Path) -> None:
    project = via()
    entries = project["_via_img_metadata"]
    first = entries["train/7.png1234"]
    numbered = first | {"regions": {str(k): region for k, region in enumerate(first["regions"])}}
    for document in (entries, {"a": numbered}):
        drawing = find(write(tmp_path / "via.json", document))["7"]
        assert np.array_equal(read_annotation(drawing, SPEC).labels, expected(with_hole=False))
    shapes = [
        {"name": "rect", "x": 5, "y": 30, "width": 10, "height": 8},
        {"name": "circle", "cx": 20, "cy": 20, "r": 6.5},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 8, "ry": 2, "theta": math.pi / 4},
    ]
    attributes = [{"Class": {"left": True, "right": False}, "who": "me"}, {"Class": "right", "who": ""}, {"Class": ""}]
    first["regions"] = [
        {"shape_attributes": shape, "region_attributes": names} for shape, names in zip(shapes, attributes, strict=True)
    ]
    drawing = find(write(tmp_path / "via.json", project))["7"]
    box, circle = drawing.shapes
    assert (box.name, box.kind) == ("left", "box") and box.points.tolist() == [[5, 30], [15, 30], [15, 38], [5, 38]]
    assert circle.name == "right" and abs(whole_mask(circle, (40, 60)).sum() - math.pi * 6.5**2) < 6
    assert read_annotation(drawing, SPEC).left_out["regions without a label"] == 1
    first["regions"][2]["region_attributes"]["Class"] = {"left": False, "right": True}
    *_, turned = find(write(tmp_path / "via.json", project))["7"].shapes
    assert turned.name == "right"
    assert np.isclose((turned.points - 20).sum(axis=1).max(), 8 * math.sqrt(2))  # it points to the right and down


def test_what_is_not_clear_in_via_is_refused(tmp_path: Path) -> None:
    def changed(**shape: Any) -> Path:
        document = via()
        document["_via_img_metadata"]["train/7.png1234"]["regions"][0] |= {"shape_attributes": shape}
        return write(tmp_path / "via.json", document)

    refused(changed(name="cuboid"), "cuboid")
    refused(changed(name="polygon", all_points_x=[1, 2, 3], all_points_y=[1, 2]), "polygon without its numbers")
    refused(changed(name="circle", cx=1, cy=1), "circle without its numbers")
    refused(changed(name="point", cx=math.nan, cy=1), "finite number")
    refused(changed(name="point", cx="3", cy=1), "valid number")
    document = via()
    region = document["_via_img_metadata"]["train/7.png1234"]["regions"][0]
    region["region_attributes"] = {"kind": "left", "quality": "good"}
    refused(write(tmp_path / "via.json", document), "region attributes kind, quality may be the class")
    for chosen, message in (
        (3, "class 3; expected a name"),
        ({"left": True, "dot": True, "right": False}, "region 1: it has the classes left, dot. Keep one"),
        ({"left": "false"}, "expected a name"),
    ):
        region["region_attributes"] = {"kind": chosen}
        refused(write(tmp_path / "via.json", document), message)
    refused(changed(name="rect", x=9, y=9, width=-3, height=4), r"train/7\.png, region 1: a box that ends before")
    refused(write(tmp_path / "via.json", {"attribute": {}, "metadata": {}, "view": {}}), "VIA 3's project")


def test_all_forms_of_geojson(tmp_path: Path) -> None:
    features = geojson()["features"]
    for k, properties in enumerate(
        [{"classification": "left"}, {"label": "left"}, {"class": "left"}, {"name": "left"}]
    ):
        features[0]["properties"] = properties
        drawing = find(write(tmp_path / "7.geojson", features if k % 2 else features[0]))["7"]
        assert drawing.shapes[0].name == "left"
    features[0]["properties"] = {"classification": {"names": ["left", "inner"]}}
    features[1]["properties"] = {"objectType": "annotation", "name": "left"}  # QuPath's name of the object
    features[2]["properties"] = None
    features[3]["geometry"] = {"type": "MultiLineString", "coordinates": [LINE, LINE]}
    features.append({"type": "Feature", "geometry": None, "properties": {"class": "left"}})
    drawing = find(write(tmp_path / "7.geojson", features))["7"]
    assert [(shape.name, shape.kind) for shape in drawing.shapes] == [
        ("left: inner", "polygon"), ("dot", "line"), ("dot", "line"), ("dot", "point"),
    ]  # fmt: skip
    assert drawing.skipped == {"regions without a label": 2, "features without a geometry": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update(crs={"type": "name", "properties": {"name": "EPSG:4326"}}), "map coordinates.*EPSG:4326"),
        (lambda x: x["features"][1].update(crs={}), "map coordinates"),
        (lambda x: x.pop("features"), "lacks 'features'"),
        (lambda x: x.update(features=3), "not a list"),
        (lambda x: x["features"].append(None), "feature 6: expected a mapping, got None"),
        (lambda x: x["features"][0]["geometry"].update(type="GeometryCollection"), "GeometryCollection"),
        (lambda x: x["features"][2].update(geometry={"type": "Point"}), "feature 3: geometry.Point.coordinates"),
        (lambda x: x["features"][0]["geometry"].update(coordinates=[]), "at least 1 item"),
        (lambda x: x["features"][0]["geometry"].update(coordinates=[[[1]]]), "at least 2 items"),
        (lambda x: x["features"][4]["geometry"].update(coordinates=[1, math.inf]), "finite|less than"),
        (lambda x: x["features"][4]["geometry"].update(coordinates=[1, True]), "valid number"),
        (lambda x: x["features"][0]["properties"].update(classification=3), "class 3; expected a name"),
        (lambda x: x["features"][0]["properties"].update(classification={"name": "unicorn"}), "unicorn"),
        (lambda x: x.update(features=[]) or x.update(type="Polygon"), "unknown format"),
    ],
)  # fmt: skip
def test_what_is_not_clear_in_geojson_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    document = geojson()
    change(document)
    refused(write(tmp_path / "7.geojson", document), message)


def test_normalized_coordinates_are_refused(tmp_path: Path) -> None:
    document = geojson()
    document["features"] = document["features"][:1]
    document["features"][0]["geometry"]["coordinates"] = [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.8]]]
    refused(write(tmp_path / "7.geojson", document), "from 0 to 1; expected pixels")


def test_boxes_of_voc(tmp_path: Path) -> None:
    """Pixels are numbered from 1, and the last one is inside."""
    path = write(tmp_path / "Annotations/7.xml", voc())
    drawing = find(path.parent)["7"]
    assert [(shape.name, shape.kind) for shape in drawing.shapes] == [("left", "box"), ("right", "box")]
    assert [shape.points[[0, 2]].tolist() for shape in drawing.shapes] == [[[5, 30], [15, 38]], [[0, 0], [15, 38]]]
    assert drawing.size == SHAPE and is_annotated(path.parent)
    for old, new in (("7.png", "renamed.jpg"), ("<filename>7.png</filename>", "")):  # the file's own name
        assert list(find(write(path, voc().replace(old, new)))) == ["7"]
    assert find(write(path, voc().replace(f"<width>{WIDTH}", "<width>0")))["7"].size is None
    outline = "<polygon><x1>1</x1></polygon></object>"
    drawing = find(write(path, voc().replace("</object>", outline, 1)))["7"]
    assert drawing.skipped["outlines beside their box"] == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>6</xmin>", "", "an object 'left' without name or bndbox"),
        ("<name>left</name>", "", "without name"),
        ("<xmin>6", "<xmin>six", "six"),
        ("<xmin>6", "<xmin>nan", "nan is not a coordinate"),
        ("<xmin>6", "<xmin>1_0", "1_0 is not"),
        ("<xmin>6", "<xmin>1e9", "1e9 is not"),
        ("<xmin>6", "<xmin>16", "left with a bndbox that ends before it begins"),
        ("bndbox>", "robndbox>", "without name or bndbox"),
        ("<width>60", "<width>61", "61x40"),
        ("<width>60", "<width>60.5", "60.5 is not a whole number"),
        (">left<", ">unicorn<", "unicorn"),
    ],
)
def test_faulty_voc(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in voc()
    refused(write(tmp_path / "7.xml", voc().replace(old, new)), message)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.yaml", YAML),
        ("data.yaml", "names: {'0': left, '1': right}"),
        ("labels/data.yaml", "names: [left, right]"),
        ("classes.txt", "left\nright\n\n"),
        ("obj.names", "\ufeffleft\r\nright"),
        ("labels/classes.txt", "left\nright"),
        ("../data.yaml", YAML),
    ],
)
def test_yolo(file: str, content: str, tmp_path: Path) -> None:
    source = tmp_path / "set/train"
    write(source / file, content)
    write(source / "labels/7.txt", yolo())
    write(source / "labels/8.txt", "")  # nothing in the image
    write(source / "README.txt", "of 3 classes\n1 2 3")
    write(source / "train.txt", "images/7.png\nimages/8.png")
    write(source / "ids.txt", "7\n8")
    found = find(source, "7", "8")
    assert {"7", "8"} <= found.keys() and not found["8"].shapes
    polygon, box = found["7"].shapes
    assert (polygon.name, polygon.kind, box.name, box.kind) == ("left", "polygon", "right", "box")
    assert np.allclose(box.points * (WIDTH, HEIGHT), [[24, 20], [36, 20], [36, 40], [24, 40]])
    write(source / "labels/7.txt", yolo().splitlines()[0])
    want = np.where(expected() == 0, 0, 255)
    for scale in (1, 4):  # of images in any size
        spec = SPEC._replace(size=(HEIGHT * scale, WIDTH * scale))
        labels = read_annotation(find(source, "7", "8")["7"], spec).labels
        assert np.array_equal(labels, want.repeat(scale, 0).repeat(scale, 1))


def test_yolo_without_class_names_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "a/b/c/labels/7.txt", yolo())
    assert not find(tmp_path / "a/b/c") and is_annotated(tmp_path / "a/b/c")
    write(tmp_path / "notes/notes.txt", "1 2 3 4\nwhat 1 2 3 4 5 means")
    assert not is_annotated(tmp_path / "notes")
    write(tmp_path / "notes/data.yaml", YAML)
    write(tmp_path / "notes/7.geojson", geojson())
    assert list(find(tmp_path / "notes")) == ["7"]


def test_yolo_of_another_split(tmp_path: Path) -> None:
    """images/val/7.png has its labels in labels/val/7.txt or val/labels/7.txt."""
    names = image_names("7", "b/7", val=["7"])
    write(tmp_path / "data.yaml", YAML)
    for path in ("labels/val/7.txt", "valid/labels/7.txt", "labels/train/b/7.txt"):
        write(tmp_path / path, yolo())
    assert find_annotations(tmp_path, "folder", names).keys() == {"val/7", "valid/7", "b/7"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .1 .1 .2 .2 .9", "line 2: 6 columns, which are not class and x y pairs"),
        ("0 .1 .1", "line 2: 3 columns"),
        ("2 .1 .1 .2 .2", r"line 2: class 2 is not in .*data.yaml"),
        ("-1 .1 .1 .2 .2", "class -1 is not in"),
        ("0.5 .1 .1 .2 .2", "class 0.5 is not in"),
        ("nan .1 .1 .2 .2", "class nan; expected its number"),
        ("0 nan .1 .2 .2", "nan is not"),
        ("0 inf .1 .2 .2", "inf is not"),
        ("0 .1 .1 .2 .x", "line 2: .x is not a coordinate"),
        ("0 6 8 20 12", "line 2: coordinates that are not from 0 to 1"),
        ("0 .1 .1 -.2 .2", "not from 0 to 1"),
        ("0,.1,.1,.2,.2", "line 2: commas or semicolons; expected blanks"),
        ("0 0,1 0,1 0,2 0,2", "expected blanks between numbers, and points in them"),
        ("left .1 .1 .2 .2", "line 2: class left; expected its number"),
    ],
)
def test_faulty_yolo(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", YAML)
    refused(write(tmp_path / "labels/7.txt", f"0 .1 .1 .2 .2\n{line}").parent, rf"7\.txt.*{message}")
    if "," in line or "left" in line:  # in all lines
        refused(write(tmp_path / "labels/7.txt", line).parent, "line 1: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nc: 2", "has no `names`"),
        ("names: [yes, no]", "has no `names`.*in quotes"),
        ("names: {left: 0}", "has no `names`"),
        ("- left", "has no `names`"),
        ("names: [a, b", "cannot be read"),
        (YAML + "kpt_shape: [17, 3]", "poses"),
    ],
)
def test_faulty_class_names(content: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "labels/7.txt", yolo())
    write(tmp_path / "data.yaml", content)
    refused(tmp_path, rf"data\.yaml.*{message}")


@pytest.mark.parametrize("name", ["via.json", "7.geojson"])
def test_faulty_json(name: str, tmp_path: Path) -> None:
    """Whatever is removed or replaced: read, or refused with the file's name."""
    refusals = 0
    for value in spoiled(FILES[name]()):
        path = write(tmp_path / name, value)
        try:
            for drawing in find(path).values():
                assert set(np.unique(read_annotation(drawing, SPEC).labels)) <= {0, 1, 2, 255}
        except (SesamError, DataIssue) as problem:
            assert name in str(problem)
            refusals += 1
    assert refusals >= 20


def test_quadrangles_of_yolo_may_be_oriented_boxes(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", YAML)
    write(tmp_path / "labels/7.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n" * 2)
    (drawn,) = (read_annotation(annotation, SPEC) for annotation in find(tmp_path, "7").values())
    told = "rows of nine columns, read as polygons (oriented boxes look the same)"
    assert drawn.left_out[told] == 2 and (drawn.labels == 0).any()
