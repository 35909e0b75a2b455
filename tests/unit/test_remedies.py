"""Each kind of refusal: its message says what to do, and what it says makes the labels right."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from conftest import edit_params, write_params
from dataset_factories import save
from PIL import Image

from sesam.artifacts.image_io import read_label
from sesam.artifacts.manifest import Manifest
from sesam.cli import main as cli
from sesam.cli.tile import tile_name
from sesam.datasets.data_issues import ISSUES_FILE
from sesam.errors import SesamError
from sesam.params import FINE_TRAIN_LABELS
from stages import prepare, weak_labels

SIDE = 16
LABEL = np.full((SIDE, SIDE), 255, np.uint8)
LABEL[2:10, 2:7], LABEL[2:10, 9:14] = 0, 1
BOXES = {"left": (2, 2, 7, 10), "right": (9, 2, 14, 10)}
AWAY = (1, 12, 15, 15)  # where LABEL has no class
COLORS = np.zeros((256, 3), np.uint8)
COLORS[0], COLORS[1] = (200, 0, 0), (0, 0, 200)


def photograph(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def data_set(*train: str) -> None:
    """A folder data set with fine labels, which are the weak labels too."""
    shutil.rmtree("mine", ignore_errors=True)
    for split, ids in (("train", train), ("val", ("0", "9"))):
        for k in ids:
            save(Path(f"mine/images/{split}/{k}.png"), photograph(f"{split} {k}"))
            save(Path(f"mine/labels/{split}/{k}.png"), LABEL)


def drawn(shapes: dict[str, tuple[float, ...]], *names: str, **size: int) -> dict[str, Any]:
    """COCO's JSON: in each image a rectangle of each class, as a polygon."""
    ids = {name: k for k, name in enumerate(shapes)}
    polygons = {k: [x, y, x2, y, x2, y2, x, y2] for k, (x, y, x2, y2) in shapes.items()}
    return {
        "images": [{"id": k, "file_name": name, **size} for k, name in enumerate(names)],
        "annotations": [
            {"id": 9 * k + ids[name], "image_id": k, "category_id": ids[name], "segmentation": [polygon]}
            for k in range(len(names))
            for name, polygon in polygons.items()
        ],
        "categories": [{"id": k, "name": name} for name, k in ids.items()],
    }


def tasks(*names: str, more: tuple[dict[str, Any], ...] = ()) -> list[dict[str, Any]]:
    """Label Studio's JSON: the rectangles as polygons, and more results."""

    def result(name: str, box: tuple[float, ...]) -> dict[str, Any]:
        x, y, x2, y2 = (100 * value / SIDE for value in box)
        value = {"points": [[x, y], [x2, y], [x2, y2], [x, y2]], "polygonlabels": [name]}
        about = {"id": name, "type": "polygonlabels", "to_name": "image"}
        return about | {"original_width": SIDE, "original_height": SIDE, "value": value}

    results = [*(result(name, box) for name, box in BOXES.items()), *more]
    return [{"data": {"image": name}, "annotations": [{"result": results}]} for name in names]


def annotate(content: Any, path: str = "ann/a.json") -> None:
    """Write annotators' labels, and have them used."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))
    change(weak_labels__path="ann", weak_labels__kind="scribble")


def pngs(values: np.ndarray, folder: str = "ann", palette: list | None = None, *ids: str) -> None:
    for k in ids or ("0", "1"):
        save(Path(f"{folder}/{k}.png"), values, palette)
    if folder == "ann":
        change(weak_labels__path="ann", weak_labels__kind="scribble")


def change(**params: object) -> None:
    edit_params(Path(), **params)


def pasted(text: str, key: str) -> Any:
    """The value of a key that a message drafts."""
    (draft,) = re.findall(rf"{key}: ([\[{{].*[\]}}])$", text, re.M)
    return yaml.safe_load(draft)


def paste_map(**answers: str) -> Callable[[str], None]:
    """Paste the draft of dataset.map, and say what some keys mean; v7 is the value 7."""

    def remedy(message: str) -> None:
        draft = pasted(message, "dataset.map")
        for key, name in answers.items():
            named = int(key[1:]) if re.fullmatch(r"v\d+", key) else key
            assert draft[named] is None
            draft[named] = name
        change(dataset__map=draft)

    return remedy


def paste_line(start: str) -> Callable[[str], None]:
    """Paste the draft of dataset.map on the line that begins so."""

    def remedy(message: str) -> None:
        (line,) = (line for line in message.splitlines() if line.strip().startswith(start))
        change(dataset__map=pasted(line, "dataset.map"))

    return remedy


class Case(NamedTuple):
    """fault: makes it. steps: what each message holds, and how it is followed. expected: each weak label then."""

    fault: Callable[[], object]
    steps: tuple[tuple[str, Callable[[str], object]], ...]
    expected: np.ndarray = LABEL


def case(fault: Callable[[], object], text: str, remedy: Callable[[str], object], *more: Any) -> Case:
    return Case(fault, ((text, remedy), *more))


def do(*calls: Callable[..., object]) -> Callable[..., None]:
    def all_of_them(*_: str) -> None:
        for call in calls:
            call()

    return all_of_them


def move(old: str, new: str) -> Callable[..., object]:
    def rename(*_: str) -> None:
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        Path(old).rename(new)

    return rename


def set_params(**params: object) -> Callable[..., None]:
    return lambda *_: change(**params)


def replace_in_params(old: str, new: str) -> Callable[..., object]:
    def edit(*_: str) -> None:
        text = Path("params.yaml").read_text()
        assert old in text
        Path("params.yaml").write_text(text.replace(old, new))

    return edit


def put(path: str, values: np.ndarray | bytes, palette: list | None = None) -> Callable[..., object]:
    def write(*_: str) -> None:
        if isinstance(values, bytes):
            Path(path).write_bytes(values)
        else:
            save(Path(path), values, palette)

    return write


def remove(path: str) -> Callable[..., object]:
    return lambda *_: Path(path).unlink()


def put_annotations(content: Any, path: str = "ann/a.json") -> Callable[..., object]:
    return lambda *_: annotate(content, path)


def unpack(*_: str) -> None:
    with zipfile.ZipFile("ann/a.zip") as archive:
        archive.extractall("ann")
    Path("ann/a.zip").unlink()


def archive() -> None:
    annotate(drawn(BOXES, "0.png", "1.png"))
    with zipfile.ZipFile("ann/a.zip", "w") as zipped:
        zipped.write("ann/a.json", "a.json")
    Path("ann/a.json").unlink()


def upright(*_: str) -> None:
    Image.open("mine/images/train/0.png").save("mine/images/train/0.png", exif=b"")


def rotated() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("mine/images/train/0.png").save("mine/images/train/0.png", exif=exif)


def coded(left: int, right: int, none: int = 255) -> np.ndarray:
    return np.select([LABEL == 0, LABEL == 1], [left, right], none).astype(np.uint8)


def labels(*values: int) -> Callable[..., None]:
    """Fine labels of all images in these values."""

    def write(*_: str) -> None:
        pngs(coded(*values), "mine/labels/train")
        pngs(coded(*values), "mine/labels/val", None, "0", "9")

    return write


def converted() -> None:
    """Palettes given out anew in each file, as conversions do."""
    pngs(LABEL, "mine/labels/train", COLORS.tolist(), "0")
    pngs(coded(1, 0), "mine/labels/train", COLORS[[1, 0, *range(2, 256)]].tolist(), "1")


def as_rgb(*_: str) -> None:
    for path in Path("mine/labels/train").iterdir():
        Image.open(path).convert("RGB").save(path)


def from_tiff(*_: str) -> None:
    for path in list(Path("mine/labels/train").iterdir()):
        Image.open(path).save(path.with_suffix(".png"))


def to_tiff() -> None:
    for path in list(Path("mine/labels/train").iterdir()):
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()


def many() -> None:
    """Of ten images, seven without annotation, and one that is left out already."""
    ids = [f"{k:080}" for k in range(10)]
    data_set(*ids)
    annotate(drawn(BOXES, *(f"{k}.png" for k in ids[:2])))
    change(dataset__exclude=[f"train/{ids[5]}"])


def paste_long_exclude(message: str) -> None:
    assert f"(whole in {ISSUES_FILE})" in message
    change(dataset__exclude=pasted(ISSUES_FILE.read_text(), "dataset.exclude"))


def paste_exclude(message: str) -> None:
    change(dataset__exclude=pasted(message, "dataset.exclude"))


def foldered() -> None:
    data_set("a/7", "b/8")
    annotate(drawn(BOXES, "7.png", "8.png", "1_1.png"))


def write_folders(message: str) -> None:
    assert "Annotations of no training image: 1 (1_1.png)" in message
    found = dict(re.findall(r"^    (\S+): (\S+)$", message, re.M))
    annotate(drawn(BOXES, *(found[name] + ".png" for name in ("7.png", "8.png"))))


def missing(message: str) -> None:
    (path,) = re.findall(r"^    (mine/\S+\.png)$", message, re.M)
    save(Path(path), LABEL)


def follow_home(message: str) -> None:
    (path,) = re.findall(r"write (\S+),", message)
    Path("mine").rename(path)
    change(dataset__root=path)


GOOD = drawn(BOXES, "0.png", "1.png")
SLIPS = {" Left": BOXES["left"], "RIGHT": BOXES["right"], 'driver\'s: a\\b "c"': AWAY}
OCCLUDED = {**tasks("0.png")[0]["annotations"][0]["result"][0], "from_name": "state"}
OCCLUDED["value"] = {**OCCLUDED["value"], "polygonlabels": ["occluded"]}
BITMASK = {"type": "bitmasklabels", "to_name": "image", "value": {"bitmasklabels": ["left"]}}
MINIMAL = [{"image": name, "id": k, "label": []} for k, name in enumerate(("0.png", "1.png"))]
PANOPTIC = {
    "images": [{"id": 1, "file_name": "0.png"}],
    "annotations": [{"image_id": 1, "segments_info": []}],
    "categories": [],
}
ROWS = "\n".join(
    f"{k} " + " ".join(f"{value / SIDE}" for value in (x, y, x2, y, x2, y2, x, y2))
    for k, (x, y, x2, y2) in enumerate(BOXES.values())
)
SHARES = {name: tuple(value / SIDE for value in box) for name, box in BOXES.items()}
photo, label, both = "mine/images/train/0.png", "mine/labels/train/0.png", photograph("train 0")

CASES = {
    # the data set
    "a label is missing": case(remove("mine/labels/val/9.png"), "missing files: 1. Add them", missing),
    "a label is a JPEG": case(put(label, b"\xff\xd8\xff"), "is a JPEG; expected PNG", put(label, LABEL)),
    "a pointer of git LFS": case(put(photo, b"version https://git-lfs"), "(run `git lfs pull`)", put(photo, both)),
    "an unreadable image is left out": case(
        put(photo, b"damaged"), "leave the images out (dataset.exclude)", set_params(dataset__exclude=["0"]),
        ("Write the split before the id, as train/0", set_params(dataset__exclude=["train/0"])),
    ),
    "a rotated image": case(rotated, "Save it upright, without that tag", upright),
    "a narrow image": case(put(photo, np.zeros((1, 99, 3), np.uint8)), "Crop them", put(photo, both)),
    "a name with a narrow space": case(
        do(move(photo, "mine/images/train/a\u202fb.png"), move(label, "mine/labels/train/a\u202fb.png")),
        "Use at most 250 bytes of printable characters",
        do(move("mine/images/train/a\u202fb.png", photo), move("mine/labels/train/a\u202fb.png", label)),
    ),
    "a label of another size": case(put(label, LABEL[1:]), "differ from their image in size: 1", put(label, LABEL)),
    "values from 2 on": case(labels(2, 9), "each value means in all labels, null", paste_map(v2="left", v9="right")),
    "values from 1 on": case(labels(1, 2, 0), "each value means", paste_map(v1="left", v2="right")),
    "a value of no class beside a map": case(
        do(labels(0, 1, 7), set_params(dataset__map={"0": "left", "1": "right", "truck": None})),
        '{0: "left", 1: "right", 7: null, "truck": null}', paste_map(),
    ),
    "an ignored value": case(
        labels(0, 1, 7), "dataset.ignore_values lists values without", set_params(dataset__ignore_values=[7]),
    ),
    "binary masks": Case(labels(255, 0, 0), (("If 255 is that class", paste_map()),), coded(1, 0, 0)),
    "palettes that contradict each other": case(
        converted, "or as RGB", as_rgb, ("they mean", paste_map(**{"#c80000": "left", "#0000c8": "right"})),
    ),
    "two images of one name": case(
        do(put("mine/images/train/0.jpg", both), put("mine/labels/train/2.png", LABEL)), "Rename one of them",
        move("mine/images/train/0.jpg", "mine/images/train/2.jpg"),
    ),
    "an image in both splits": case(
        put("mine/images/val/9.png", both), "images in train and in val: 1", set_params(dataset__exclude=["val/9"]),
    ),
    "no fine labels to validate on": case(
        lambda: shutil.rmtree("mine/labels/val"), "or set dataset.val_splits: []",
        set_params(dataset__val_splits=[]),
    ),
    "labels with an ending": case(
        do(*(move(f"mine/labels/train/{k}.png", f"mine/labels/train/{k}_mask.png") for k in (0, 1))),
        "all names end in _mask",
        do(*(move(f"mine/labels/train/{k}_mask.png", f"mine/labels/train/{k}.png") for k in (0, 1))),
    ),
    "labels are TIFFs": case(to_tiff, "Or convert 2 .tif", from_tiff),
    "a split of another name": case(
        do(move("mine/images/train", "mine/images/t"), move("mine/labels/train", "mine/labels/t")),
        "mine/images has t, val", set_params(dataset__train_splits=["t"]),
    ),
    "an unknown image is excluded": case(
        set_params(dataset__exclude=["0.png"]), "dataset.exclude lists images that are not in mine: 1 (0.png)",
        set_params(dataset__exclude=["train/0"]),
    ),
    "an unknown image is chosen": case(
        set_params(dataset__subset=["0.png"]), "Training images have ids like 0", set_params(dataset__subset=["0"]),
    ),
    "the root is wrong": case(
        set_params(dataset__root="yours"), "or correct the path", set_params(dataset__root="mine"),
    ),
    "the root is in the home folder": case(set_params(dataset__root="~/mine2"), "DVC does not know ~", follow_home),
    "classes without quotes": case(
        do(set_params(dataset__classes=["yes", "no"]), replace_in_params("'yes'\n  - 'no'", "yes\n  - no")),
        'must be quoted, as "yes"', replace_in_params("yes\n  - no", '"yes"\n  - "no"'),
    ),
    "colors without quotes": case(
        do(set_params(dataset__palette=["#ff0000", "#00ff00"]), replace_in_params("'", "")),
        'write colors in quotes, as "#ff0000"',
        do(replace_in_params("- #ff0000", '- "#ff0000"'), replace_in_params("- #00ff00", '- "#00ff00"')),
    ),
    "a map to an unknown class": case(
        set_params(dataset__map={"x": "lefd"}), "map has lefd, which is not in classes", set_params(dataset__map={}),
    ),
    "no fine labels to simulate from": case(
        do(lambda: shutil.rmtree("mine/labels/train")), "set weak_labels.path to annotators' labels",
        put_annotations(GOOD),
    ),
    # annotators' labels
    "names that differ from classes": case(
        do(put_annotations(drawn(SLIPS, "0.png", "1.png")), set_params(dataset__map={"truck": None})),
        'did you mean left?', paste_map(),
    ),
    "a label of an attribute": case(
        put_annotations(tasks("0.png", "1.png", more=(OCCLUDED,))), "'occluded'", paste_map(),
    ),
    "an image without annotation": case(
        put_annotations(drawn(BOXES, "0.png")), "images without annotation: 1", paste_exclude,
    ),
    "many images without annotation": case(many, "images without annotation: 7", paste_long_exclude),
    "names without folders": case(foldered, "Write the folder before each name", write_folders),
    "a shape that is not read": case(
        put_annotations(tasks("0.png", "1.png", more=(BITMASK,))), "Draw them as polygons",
        put_annotations(tasks("0.png", "1.png")),
    ),
    "two files of one image": case(
        do(put_annotations(GOOD), put_annotations(drawn({"left": AWAY}, "0.png"), "ann/b.json")),
        "ann/a.json (0.png) and ann/b.json (0.png) both annotate 0. Keep one", remove("ann/b.json"),
    ),
    "a file that annotates an image twice": case(
        put_annotations(drawn(BOXES, "0.png", "1.png", "x/0.png")), "Keep one of the two entries",
        put_annotations(GOOD),
    ),
    "Label Studio's JSON-MIN": case(
        put_annotations(MINIMAL), "Export the project as JSON", put_annotations(tasks("0.png", "1.png")),
    ),
    "COCO's panoptic JSON": case(put_annotations(PANOPTIC), "Export instances", put_annotations(GOOD)),
    "a damaged file": case(put_annotations("[{"), "export it again", put_annotations(GOOD)),
    "a folder with an archive": case(archive, "Unpack archives", unpack),
    "an archive": case(
        do(archive, set_params(weak_labels__path="ann/a.zip")), "Unpack it",
        do(unpack, set_params(weak_labels__path="ann")),
    ),
    "a path that is not there": case(
        do(put_annotations(GOOD), set_params(weak_labels__path="annn")), "Correct the path",
        set_params(weak_labels__path="ann"),
    ),
    "annotations of other images": case(
        put_annotations(drawn(BOXES, "x.png", "y.png")), "Training images have ids like 0; the annotations are of 2 (x",
        put_annotations(GOOD),
    ),
    "shapes without a label": case(
        put_annotations({**GOOD, "annotations": []}), "Give shapes the names of dataset.classes", put_annotations(GOOD),
    ),
    "coordinates from 0 to 1": case(
        put_annotations(drawn(SHARES, "0.png", "1.png")), "expected pixels", put_annotations(GOOD),
    ),
    "annotations of another size": case(
        put_annotations(drawn(BOXES, "0.png", "1.png", width=9, height=9)), "is 9x9, its image 16x16",
        put_annotations(drawn(BOXES, "0.png", "1.png", width=SIDE, height=SIDE)),
    ),
    "YOLO's text without class names": case(
        do(put_annotations(ROWS, "ann/0.txt"), put_annotations(ROWS, "ann/1.txt")),
        "put data.yaml or classes.txt beside", put_annotations("left\nright", "ann/classes.txt"),
    ),
    "binary masks as weak labels": Case(
        do(labels(1, 0, 0), lambda: pngs(coded(255, 0, 0))), (
            ("If 255 is that class", paste_map()),
            ("each value means in all labels", paste_map(v1="right")),  # in the fine labels
        ), coded(1, 0, 0),
    ),
    "0 where nobody drew": case(
        lambda: (change(dataset__classes=["nobody", "left"]), pngs(coded(1, 1, 0))), "255 is unlabeled",
        paste_line("If 0 is unlabeled in all"),
    )._replace(expected=coded(1, 1)),
    "fine masks called scribbles": case(
        lambda: pngs(coded(1, 0, 0)), "255 is unlabeled", paste_line("If these are fine masks")
    )._replace(expected=coded(1, 0, 0)),
    "strokes from 1 on": case(lambda: pngs(coded(1, 2)), "Correct the labels", lambda _: pngs(LABEL)),
    "a link to a folder above": case(
        do(put_annotations(GOOD), lambda: Path("ann/here").symlink_to("..")), "Link the folder with the files alone",
        remove("ann/here"),
    ),
}  # fmt: skip


@cache
def params_text() -> str:
    write_params(Path())
    dataset = {"dataset__root": "mine", "dataset__classes": ["left", "right"], "dataset__palette": None}
    change(**dataset, runtime__num_workers=1, weak_labels__path=FINE_TRAIN_LABELS, weak_labels__kind="fine")
    return Path("params.yaml").read_text()


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("params.yaml").write_text(params_text())
    data_set("0", "1")


def refusal() -> str:
    """The message of what refuses the labels; empty if they are made."""
    try:
        prepare.main()
        weak_labels.main()
    except SesamError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_makes_the_labels_right(name: str) -> None:
    CASES[name].fault()
    for text, remedy in CASES[name].steps:
        message = refusal()
        assert text in message
        remedy(message)
    assert refusal() == ""
    for record in Manifest.load().train:
        assert np.array_equal(read_label(Path(f"data/weak/{record.id}.png")), CASES[name].expected)


def test_tiles_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE // 4)
    assert "Cut it (`sesam tile split`)" in refusal()
    cli.main(["tile", "split", "mine", "--out", "tiles", "--tile-size", "8", "--overlap", "4"])
    change(dataset__root="tiles")
    assert refusal() == ""
    names = {(k, top, left) for k in "01" for top in (0, 4, 8) for left in (0, 4, 8)}
    assert {record.id for record in Manifest.load().train} == {f"{k}/{tile_name(top, left)}" for k, top, left in names}
    for k, top, left in names:
        tile = read_label(Path(f"data/weak/{k}/{tile_name(top, left)}.png"))
        assert np.array_equal(tile, LABEL[top : top + 8, left : left + 8])
