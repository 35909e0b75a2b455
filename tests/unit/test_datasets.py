"""Data sets in their original layouts: label values, annotators' labels, budgets, issues."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import cv2
import dataset_factories
import numpy as np
import pytest
from conftest import edit_params, write_params
from dataset_factories import CITYSCAPES_IDS, FACTORIES, HEIGHT, WIDTH, halves, make_label_map, photo, save
from mmseg.datasets import ADE20KDataset, CityscapesDataset, PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from sesam.artifacts.image_io import read_image, read_label
from sesam.artifacts.manifest import Manifest, load_unused
from sesam.datasets.annotations.image_names import ImageNames
from sesam.datasets.importer import choose_subset
from sesam.datasets.label_maps import CAMVID, class_names_and_palette, read_values
from sesam.datasets.layouts import ImagePair, find_pairs, list_files
from sesam.errors import SesamError
from sesam.params import DatasetParams
from stages import prepare, weak_labels

# cityscapesScripts, helpers/labels.py: the train id of each label id from 0 on
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a data set and the params.yaml of its preset in the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(dataset_format: str, root: str = "raw", **changes: object) -> None:
        write_params(tmp_path, dataset_format)
        edit_params(tmp_path, dataset__root=root, runtime__num_workers=1, **changes)
        if not Path(root).exists():
            FACTORIES[dataset_format](Path(root))

    return make


def error_of(stage: ModuleType, *expected: str) -> str:
    """The error that a stage ends with; it has all the expected texts."""
    with pytest.raises(SesamError) as problem:
        stage.main()
    message = str(problem.value)
    assert not [text for text in expected if text not in message], message
    return message


def prepared() -> Manifest:
    prepare.main()
    return Manifest.load()


def trained_ids() -> list[str]:
    return [record.id for record in prepared().train]


def weak(name: str) -> np.ndarray:
    return read_label(Path(f"data/weak/{name}.png"))


@pytest.mark.parametrize(
    ("dataset_format", "train", "val", "left", "right"),
    [
        ("cityscapes", "aachen_000000_000019", "frankfurt_000000_000294", 0, 13),
        ("ade20k", "ADE_train_00000001", "ADE_val_00000001", 0, 149),
        ("voc", "2007_000032", "2007_000033", 0, 15),
        ("folder", "0", "0", 0, 1),
    ],
)
def test_a_preset_and_the_root_are_enough(workspace, capsys, dataset_format, train, val, left, right) -> None:
    workspace(dataset_format)
    manifest = prepared()
    assert manifest.train[0].id == train and [record.id for record in manifest.val] == [val]
    assert all(
        Path(record.image).exists() and record.image.startswith("raw") for record in manifest.train + manifest.val
    )
    fine = read_label(Path(f"data/fine/train/{train}.png"))
    assert (fine == halves(left, right, edge=255)).all()
    weak_labels.main()
    for record in manifest.train:
        drawn = weak(record.id)
        assert set(np.unique(drawn)) == {left, right, 255} and (drawn[drawn != 255] == fine[drawn != 255]).all()
    printed, images = capsys.readouterr(), len(manifest.train)
    assert f"{images} training images, 1 validation images" in printed.out
    assert f"about 2 components per image, {2 * images} SAM prompts per round, 1 round" in printed.out
    assert f"({images} of 2.1 MB;" in printed.out and "MB per round for prompts and masks" in printed.out
    assert "sam.checkpoint" not in printed.err, "embed fetches it"


@pytest.mark.parametrize(
    ("dataset_format", "known", "class_id", "name"),  # as documented
    [
        ("cityscapes", CityscapesDataset, TRAIN_IDS[26], "car"),
        ("ade20k", ADE20KDataset, 150 - 1, "flag"),
        ("voc", PascalVOCDataset, 15, "person"),
    ],
)
def test_classes_and_colors_are_mmsegmentations(dataset_format: str, known, class_id: int, name: str) -> None:
    names, palette = class_names_and_palette(DatasetParams(format=dataset_format))
    assert names == list(known.METAINFO["classes"]) and names[class_id] == name
    assert palette == [tuple(color) for color in known.METAINFO["palette"]]


def test_cityscapes_label_ids_become_train_ids() -> None:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    label_map = make_label_map("cityscapes", 19, [255])
    class_ids, unknown = label_map.class_ids(ids)
    assert class_ids.ravel().tolist() == TRAIN_IDS and not unknown
    assert label_map.class_ids(ids + 1)[1] == ["34"]
    assert label_map.class_ids(np.array([[0, 18, 255]], np.uint8))[1] == ["255"], "train ids are reported"


@pytest.mark.parametrize(
    ("dataset_format", "classes", "valid", "reduce"),
    [("ade20k", 150, range(151), True), ("voc", 21, [*range(21), 255], False)],
)
def test_other_values_become_what_mmsegmentation_makes_of_them(
    tmp_path, dataset_format, classes, valid, reduce
) -> None:
    values = np.array([valid], np.uint8)
    save(tmp_path / "label.png", values, dataset_factories.voc_palette() if dataset_format == "voc" else None)
    read = {"seg_map_path": str(tmp_path / "label.png"), "reduce_zero_label": reduce, "seg_fields": []}
    expected = LoadAnnotations(reduce_zero_label=None)(read)["gt_seg_map"]
    label_map = make_label_map(dataset_format, classes, [255])
    class_ids, unknown = label_map.class_ids(values)
    assert (class_ids == expected).all() and not unknown
    others = np.setdiff1d(np.arange(256), valid).astype(np.uint8)[None]
    assert label_map.class_ids(others)[1] == [str(value) for value in others[0]]


def test_a_map_says_what_values_and_colors_mean() -> None:
    mapped = {"2": "c0", "9": "c1", "0": None, "#ff0000": "c1"}
    label_map = make_label_map("folder", 2, [255], mapped)
    ids, unknown = label_map.class_ids(np.array([[0, 2, 9, 255, 1]], np.uint8))
    assert ids[0, :4].tolist() == [255, 0, 1, 255] and unknown == ["1"]  # with values in it, it names all
    ids, unknown = label_map.class_ids(np.array([[[255, 0, 0], [1, 9, 200], [0, 0, 0], [5, 5, 5]]], np.uint8))
    assert ids[0, :3].tolist() == [1, 0, 255] and unknown == ["#050505"]


def read_back(values: np.ndarray, mapped: dict[str, str | None], palette: list | None = None, mode: str = "") -> list:
    """The class ids in the first row of a label file with classes c0, c1 and c2."""
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(np.array(palette, np.uint8).tobytes())
    (picture.convert(mode) if mode else picture).save("label.png")
    label_map = make_label_map("folder", 3, [255], mapped)
    ids, unknown = label_map.class_ids(read_values(Path("label.png"), label_map)[0])
    return unknown or ids[0].tolist()


def test_gray_colors_and_opaque_alpha(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    gray = np.zeros((1, 4, 3), np.uint8)
    gray[0, :2] = 255
    mapped = {"#000000": "c1", "#ffffff": "c2", "#ff0000": "c0"}
    assert read_back(gray, mapped) == [2, 2, 1, 1], "a file without the red class is color-coded too"
    assert read_back(gray * 0, mapped) == [1] * 4 and read_back(gray * 0, {}) == [0] * 4
    assert read_back(gray, {"#ff0000": "c1"}) == [255, 255, 0, 0], "values, as Scribbles4All's"
    assert read_back(gray, mapped, mode="RGBA") == [2, 2, 1, 1]
    assert read_back(np.array([[0, 2]], np.uint8), {}, mode="LA") == [0, 2]
    with pytest.raises(SesamError, match="mode RGBA"):
        read_back(np.zeros((1, 1, 4), np.uint8), mapped)
    many = np.arange(300).astype(np.uint16)[None].view(np.uint8).reshape(1, 300, 2)
    listed = read_back(np.dstack([many, many[..., :1] + 1]), {})
    assert len(listed) == 21 and listed[-1] == "and 280 more", "a photograph in a label's place floods nothing"


def test_colors_of_a_map_are_compared_with_palettes(workspace) -> None:
    workspace("folder", dataset__map={"#00FF00": "background", "#ff0000": "object", "#0000ff": None})
    for k in range(3):
        save(Path(f"raw/labels/train/{k}.png"), halves(0, 1), [(255, 0, 0), (0, 255, 0)])
    error_of(prepare, "labels/train/0.png: value 0 has the color of object in dataset.map", "or as RGB")
    for k in range(3):
        colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
        save(Path(f"raw/labels/train/{k}.png"), colors[halves(0, 1, edge=2)])
    prepare.main()  # #00FF00 is #00ff00 too
    assert (read_label(Path("data/fine/train/0.png")) == halves(1, 0, edge=255)).all()


# the original label_colors.txt, and the class of the usual eleven that each name belongs to
CAMVID_COLORS = """
64 128 64 Animal pedestrian | 192 0 128 Archway building | 0 128 192 Bicyclist bicyclist | 0 128 64 Bridge building
128 0 0 Building building | 64 0 128 Car car | 64 0 192 CartLuggagePram pedestrian | 192 128 64 Child pedestrian
192 192 128 Column_Pole pole | 64 64 128 Fence fence | 128 0 192 LaneMkgsDriv road | 192 0 64 LaneMkgsNonDriv road
128 128 64 Misc_Text sign | 192 0 192 MotorcycleScooter bicyclist | 128 64 64 OtherMoving car
64 192 128 ParkingBlock sidewalk | 64 64 0 Pedestrian pedestrian | 128 64 128 Road road
128 128 192 RoadShoulder sidewalk | 0 0 192 Sidewalk sidewalk | 192 128 128 SignSymbol sign | 128 128 128 Sky sky
64 128 192 SUVPickupTruck car | 0 0 64 TrafficCone pole | 0 64 64 TrafficLight sign | 192 64 128 Train car
128 128 0 Tree tree | 192 128 192 Truck_Bus car | 64 0 64 Tunnel building | 192 192 0 VegetationMisc tree
0 0 0 Void none | 64 192 0 Wall building
"""


def test_camvids_32_colors_become_11_classes_and_void() -> None:
    rows = [row.split() for row in CAMVID_COLORS.replace("|", "\n").strip().splitlines()]
    assert len(rows) == 32
    colors = np.array([[row[:3] for row in rows]], np.uint8)
    label_map = make_label_map("camvid", 11, [255])
    class_ids, unknown = label_map.class_ids(colors)
    assert [[*CAMVID, *["none"] * 245][k] for k in class_ids[0]] == [row[4] for row in rows] and not unknown
    assert label_map.class_ids(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8))[1] == ["#010203"]


@pytest.mark.parametrize("form", ["published", "palette", "colors", "index"])
def test_camvid_in_each_form(workspace, form: str) -> None:
    names = dataset_factories.CAMVID_NAMES
    dataset_factories.camvid(Path("raw"), "published" if form == "palette" else form)
    if form == "palette":
        for path in Path("raw/LabeledApproved_full").iterdir():
            Image.open(path).quantize(32).save(path)
    workspace("camvid")
    manifest = prepared()
    assert [record.id for record in manifest.train] == names["train"]
    assert [record.id for record in manifest.val] == names["val"]
    fine = read_label(Path("data/fine/train/0001TP_006690.png"))
    assert (fine[:16] == 0).all() and (fine[16:28] == 3).all() and (fine[28:] == 255).all()
    assert [pair.id for pair in find_pairs("camvid", Path("raw"), ["test"], "val")] == names["test"]


@pytest.mark.parametrize(
    ("lists", "trained"),
    [
        ({}, ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]),  # all that is labeled and not in val
        ({"aug": ["2008_000003"]}, ["2007_000032", "2007_000039", "2008_000003"]),
        ({"trainaug": ["2007_000039", "2008_000002"]}, ["2007_000039", "2008_000002"]),
    ],
)
def test_voc_with_the_labels_of_sbd(workspace, lists, trained) -> None:
    own = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    more = ["2008_000002", "2008_000003", "2007_000033", "2007_000039"]
    dataset_factories.voc(Path("raw/VOCdevkit/VOC2012"), own | lists, more)
    workspace("voc")
    assert trained_ids() == trained
    assert 15 in read_label(Path("data/fine/train/2007_000039.png")), "VOC's own label comes first"
    assert 8 in read_label(Path(f"data/fine/train/{trained[-1]}.png"))
    edit_params(Path(), dataset__train_splits=["train"])
    assert trained_ids() == own["train"]


def test_voc_with_the_list_and_without_the_labels_of_sbd(workspace) -> None:
    names = ["2007_000032", "2007_000039", "2008_000002"]
    lists = {"train": names[:2], "val": ["2007_000033"], "trainaug": names}
    dataset_factories.voc(Path("raw"), lists)
    save(Path("raw/JPEGImages/2008_000002.jpg"), photo(3))
    (Path("raw/ImageSets/Segmentation/trainaug.txt")).write_text("\ufeff" + "\r\n\r\n".join(names), encoding="utf-8")
    workspace("voc")
    assert [record.has_fine_label for record in prepared().train] == [True, True, False]
    Path("raw/ImageSets/Segmentation/trainaug.txt").unlink()
    edit_params(Path(), dataset__train_splits=["trainaug"])
    error_of(prepare, "has neither SegmentationClassAug nor")


def test_linked_folders_are_followed_with_a_warning_and_hidden_files_are_not_read(workspace, capsys) -> None:
    dataset_factories.custom_folder(Path("elsewhere"))
    Path("elsewhere/images/train/._0.jpg").write_bytes(b"of a file manager")
    Path("elsewhere/labels/train/.DS_Store.png").write_bytes(b"of a file manager")
    Path("raw").mkdir()
    for name in ("images", "labels"):
        Path("raw", name).symlink_to(Path("elsewhere", name).absolute())
    workspace("folder")
    assert len(trained_ids()) == 3
    assert "symlinked folders inside dataset.root, 2 (raw/images, raw/labels)" in capsys.readouterr().err


def test_a_link_cycle_lists_each_file_once(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/inner/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "0_link").symlink_to(tmp_path / "b")
    (tmp_path / "b/inner/across").symlink_to(tmp_path / "a")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == ["a/0.png", "b/inner/1.png"]
    assert [path.name for path in list_files(tmp_path / "a/up/b")] == ["1.png", "0.png"], "links are followed"


# Annotation budgets


def test_a_smaller_subset_is_part_of_every_larger_one() -> None:
    pairs = [ImagePair(str(k), Path(f"{k}.png"), None) for k in range(40)]
    chosen = [{pair.id for pair in choose_subset(pairs, fraction)} for fraction in (0.05, 0.1, 0.3, 1.0)]
    assert [len(ids) for ids in chosen] == [2, 4, 12, 40]
    assert all(less < more for less, more in pairwise(chosen))
    assert len(choose_subset(pairs, 0.001)) == 1
    assert [pair.id for pair in choose_subset(pairs, ["7", "3"])] == ["3", "7"]
    assert chosen[1] == {"0", "15", "22", "39"}, "drawn, and the same in every run"


def test_images_listed_and_left_out(workspace) -> None:
    workspace("cityscapes", dataset__subset=CITYSCAPES_IDS[:0:-1])
    assert trained_ids() == CITYSCAPES_IDS[1:]
    edit_params(Path(), dataset__subset=None, dataset__exclude=CITYSCAPES_IDS[2:])
    assert trained_ids() == CITYSCAPES_IDS[:2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset__subset": ["aachen"]}, "Training images have ids like aachen_000000_000019"),
        ({"dataset__exclude": ["aachen"]}, "dataset.exclude lists images that are not in raw: 1 (aachen)"),
        ({"dataset__exclude": ["frankfurt_000000_000294"]}, "no image is left in val"),
        ({"dataset__exclude": CITYSCAPES_IDS, "dataset__subset": CITYSCAPES_IDS[:1]}, "no image is left in train"),
        ({"dataset__exclude": [2007000032]}, "image ids must be quoted"),
        ({"dataset__subset": [2007000032]}, "image ids must be quoted"),
        ({"dataset__train_splits": ["a"], "dataset__val_splits": ["b"]}, "raw/leftImg8bit/b is missing"),
        ({"dataset__val_splits": ["test"]}, "the validation labels have no class"),
        ({"sam__model": "vit-h"}, "sam.model is 'vit-h'"),
        ({"dataset__val_splits": ["train_extra"]}, "no fine labels of validation images: 1 (augsburg_000000_000000)"),
        ({"dataset__train_splits": ["train_fine"]}, "raw/leftImg8bit/train_fine is missing"),
        ({"dataset__format": "ade20k"}, "raw/images/training is missing"),
        ({"dataset__format": "voc"}, "raw/ImageSets/Segmentation/train.txt cannot be read"),
        ({"dataset__classes": ["a", "b"]}, "cityscapes defines its own classes; set them to null"),
        ({"dataset__root": "nowhere"}, "dataset.root: nowhere is not a folder"),
    ],
)
def test_wrong_dataset_params_are_reported(workspace, changes, message) -> None:
    workspace("cityscapes")
    dataset_factories.cityscapes_image(Path("raw"), "test", "berlin_000000_000019", photo(9), halves(0, 0))
    edit_params(Path(), **changes)
    error_of(prepare, message)
    assert not list(Path("data").rglob("*.*"))


def test_what_is_there_instead_is_named(workspace) -> None:
    workspace("folder")
    for kind in ("images", "labels"):
        Path(f"raw/{kind}/val").rename(f"raw/{kind}/valid")
    error_of(prepare, "raw/images/val is missing; raw/images has train, valid", "dataset.train_splits and .val_splits")
    edit_params(Path(), dataset__val_splits=["valid"])
    assert len(prepared().val) == 1
    Path("raw/labels/train/0.png").rename("raw/labels/train/0.tif")
    error_of(prepare, "raw/labels/train/0.png (there is 0.tif)")
    cv2.imwrite("raw/labels/train/0.png", np.zeros((HEIGHT, WIDTH), np.uint16))
    error_of(prepare, "Convert it to 8 with equal values")


def test_a_phones_jpeg_is_its_first_picture(workspace) -> None:
    """Whose second may be a depth or a brightness map."""
    workspace("folder")
    pictures = [Image.fromarray(photo(k)) for k in (0, 1)]
    pictures[0].save("raw/images/train/0.jpg", "MPO", save_all=True, append_images=pictures[1:])
    prepare.main()
    pictures[0].save("alone.jpg")
    assert np.array_equal(read_image(Path("raw/images/train/0.jpg")), read_image(Path("alone.jpg")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset__ignore_values": [0]}, "say in map what each value means"),
        ({"dataset__ignore_values": [0], "dataset__map": {0: "object"}}, "[0], which map gives a class"),
        ({"dataset__map": {0: 0}}, "is a class's name, or null; got 0"),
    ],
)
def test_wrong_maps_are_reported(workspace, changes, message) -> None:
    workspace("folder", **changes)
    error_of(prepare, message)
    edit_params(Path(), dataset__ignore_values=[0], dataset__map={1: "background", 255: "object"})
    assert len(trained_ids()) == 3


# Annotators' weak labels


def annotated(workspace, dataset_format: str, source: str, **changes: object) -> Manifest:
    workspace(dataset_format, weak_labels__path=source, **changes)
    manifest = prepared()
    shutil.rmtree("data/fine/train")  # not read
    weak_labels.main()
    return manifest


def test_cityscapes_coarse_labels(workspace) -> None:
    manifest = annotated(workspace, "cityscapes", "raw/gtCoarse", dataset__train_splits=["train", "train_extra"])
    assert [record.id for record in manifest.train if not record.has_fine_label] == ["augsburg_000000_000000"]
    for record in manifest.train:
        label = weak(record.id)
        assert (label[8:20, 6:18] == 0).all() and (label[8:20, 30:42] == 13).all() and (label != 255).sum() == 288


@pytest.mark.parametrize("dataset_format", ["cityscapes", "ade20k"])
def test_corrections_have_class_ids_in_every_format(workspace, dataset_format: str, capsys) -> None:
    workspace(dataset_format)
    record = prepared().train[0]
    weak_labels.main()
    before = weak(record.id)
    corrected = np.full((record.height, record.width), 255, np.uint8)
    corrected[:, 8:16], corrected[:, 16:24], corrected[:, 24:32] = 0, 7, 13
    save(Path(f"data/corrections/{record.id}.png"), corrected)
    save(Path("data/corrections/nobody.png"), corrected)
    weak_labels.main()
    assert (before[corrected == 255] != 255).any()
    assert np.array_equal(weak(record.id), np.where(corrected == 255, before, corrected))
    assert "warning: data/corrections: corrections that match no training image: 1 (nobody)." in capsys.readouterr().err


def test_images_without_fine_labels_need_annotators(workspace) -> None:
    workspace("cityscapes", dataset__train_splits=["train", "train_extra"])
    prepare.main()
    error_of(weak_labels, "1 training images have no fine labels", "gtCoarse")
    assert not Path("data/weak").exists()


def test_scribblesup(workspace, capsys) -> None:
    strokes = [("background", [(2, 5), (20, 5)]), ("bike", [(30, 10), (30, 20), (40, 20)])]
    strokes.append(("person", [(44, 30), (60, 30)]))
    for name in ("2007_000032", "2007_000039", "2007_000033"):
        dataset_factories.scribblesup(Path("scribble_annotation/pascal_2012"), name, strokes)
    annotated(workspace, "voc", "scribble_annotation/pascal_2012")
    label = weak("2007_000032")
    assert (label[4:7, 2:21] == 0).all() and label[15, 30] == 2 and label[20, 35] == 2 and label[30, 47] == 15
    assert label[15, 35] == 255, "a stroke is a line, not a polygon"
    assert "classes that no pixel or box has: 18 (aeroplane, bird" in capsys.readouterr().err


def test_whats_the_point(workspace, capsys) -> None:
    clicks = {"2007_000032": [(10, 8, 1), (40, 20, 15)], "2007_000039": [], "2011_000001": [(1, 1, 3)]}
    dataset_factories.whats_the_point(Path("pascal2012_trainval_main.json"), clicks)
    annotated(workspace, "voc", "pascal2012_trainval_main.json", weak_labels__kind="point")
    label = weak("2007_000032")
    assert label[8, 10] == 1 and label[20, 40] == 15 and label[20, 42] == 15 and (label != 255).sum() == 2 * 13
    warnings = capsys.readouterr().err
    assert "images without any label of annotators: 1 (2007_000039)" in warnings and "background" in warnings


def test_scribbles4all_of_cityscapes_and_ade20k(workspace) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[10:13, 5:15] = 26
    for name in CITYSCAPES_IDS:
        path = f"s4Cityscapes/scribbles/gtFine/train/{name.split('_')[0]}/{name}_gtFine_labelIds.png"
        save(Path(path), np.dstack([drawn] * 3))
    annotated(workspace, "cityscapes", "s4Cityscapes/scribbles")
    label = weak("zurich_000121_000019")
    assert (label[10:13, 5:15] == 13).all() and (label != 255).sum() == 30
    drawn[drawn == 26] = 150
    for k in (1, 2, 3):
        save(Path(f"s4ADE20K/scribbles/training/ADE_train_{k:08d}.png"), drawn)
    annotated(workspace, "ade20k", "s4ADE20K/scribbles/training", root="ade")
    label = weak("ADE_train_00000002")
    assert (label[10:13, 5:15] == 149).all() and (label != 255).sum() == 30


def test_a_custom_folder(workspace, capsys) -> None:
    for right, edge in ((1, 0), (255, 255)):
        for k in range(3):
            save(Path(f"mine/{k}.png"), halves(1, right, edge=edge))
        annotated(workspace, "folder", "mine", dataset__map={0: "background", 1: "object"})
        assert (weak("1") == halves(1, right, edge=edge)).all()
        assert ("255 is unlabeled, other values by dataset.map: 3 (0, 1, 2)" in capsys.readouterr().err) == (edge == 0)
    shutil.rmtree("raw/labels/train")
    assert not any(record.has_fine_label for record in prepared().train)
    assert "never occur" not in capsys.readouterr().err, "nothing is known of them"
    weak_labels.main()
    assert len(list(Path("data/weak").iterdir())) == 3


def test_issues_of_annotations_are_reported_together(workspace) -> None:
    names = [f"2007_{k:06d}" for k in range(4)]
    dataset_factories.voc(Path("raw"), {"train": names, "val": ["2007_000033"]})
    source = Path("scribbles")
    dataset_factories.scribblesup(source, names[0], [("unicorn", [(1, 1), (5, 5)])])
    (source / f"{names[1]}.xml").write_text("<annotation>")
    save(source / f"{names[2]}.png", np.zeros((5, 5), np.uint8))
    workspace("voc", weak_labels__path="scribbles")
    prepare.main()
    message = error_of(weak_labels, "scribbles (weak_labels.path) has 4 issues; nothing was written")
    assert "images without annotation: 1" in message and f"    {names[3]}" in message
    assert "names that are not a class: 1" in message and f"{names[0]}.xml: 'unicorn'" in message
    assert "unreadable files: 1" in message and f"{names[1]}.xml cannot be read as ScribbleSup's XML" in message
    assert "labels that differ from their image in size: 1" in message and f"{names[2]}.png is 5x5" in message
    assert not Path("data/weak").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (("<height>32<", "<height>-5<"), "is 48x-5, its image 48x32"),
        (("<height>32<", "<height>10000000<"), "is 48x10000000, its image"),
        (("<height>32</height>", ""), "cannot be read as ScribbleSup's XML"),
        (("</height>", ""), "cannot be read as ScribbleSup's XML"),
        (("<annotation>", '<?xml version="1.0" encoding="foo"?><annotation>'), "cannot be read as ScribbleSup's XML"),
        (("<X>1<", "<X>1.5<"), "cannot be read as ScribbleSup's XML"),
    ],
)
def test_invalid_xml_is_reported(workspace, spoil: tuple[str, str], reason: str) -> None:
    for name in ("2007_000032", "2007_000039"):
        dataset_factories.scribblesup(Path("xml"), name, [("cat", [(1, 1), (99999999999, 5)])])
    path = Path("xml/2007_000039.xml")
    path.write_text(path.read_text().replace(*spoil))
    workspace("voc", weak_labels__path="xml")
    prepare.main()
    error_of(weak_labels, "1 issue;", f"2007_000039: {path} {reason}")


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("points.json", '{"2007_000032": [{"x": 1, "y": 2}]}', "2007_000032: clicks in points.json that are not {x, "),
        ("points.JSON", '{"2007_000032": [{"x": null, "y": 2, "cls": 1}]}', "clicks in points.JSON that are not {x, y"),
        ("points.json", '["2007_000032"]', "points.json cannot be read as Label Studio's JSON (task number 1: "),
        ("points.json", "3", "points.json is of an unknown format, which is not read. Export one of"),
        ("points.json", "[", "points.json cannot be read (Expecting value"),
        ("points.json", "{}", "points.json is of an unknown format"),
        ("nowhere", None, "weak_labels.path: nowhere is not a folder"),
    ],
)
def test_an_unreadable_source_is_reported(workspace, source, content, message) -> None:
    workspace("voc", weak_labels__path=source)
    if content:
        Path(source).write_text(content)
    prepare.main()
    error_of(weak_labels, message)


# Issues


def test_names_of_no_image_stand_beside_images_without_annotation(workspace) -> None:
    for name in ("0", "1", "2_mask"):
        save(Path(f"mine/{name}.png"), halves(0, 1))
    workspace("folder", weak_labels__path="mine")
    prepare.main()
    error_of(weak_labels, "images without annotation: 1", "Annotations of no training image: 1 (2_mask)")


def test_names_in_another_case_are_told(workspace) -> None:
    """Also if no name is an image's."""
    save(Path("mine/ade_TRAIN_00000001.png"), halves(0, 1))
    workspace("ade20k", weak_labels__path="mine")
    prepare.main()
    error_of(weak_labels, "case, blanks, - or _: 1. Rename", "ade_TRAIN_00000001: ADE_train_00000001")


def test_all_issues_are_counted_and_nothing_is_written(workspace) -> None:
    root = Path("raw")
    for k in range(13):
        save(root / f"images/train/{k:02d}.png", photo(k))
        save(root / f"labels/train/{k:02d}.png", halves(0, 1, edge=255))
    for name, seed, edge in (("a", 99, 7), ("b", 11, 255)):
        save(root / f"images/val/{name}.png", photo(seed))
        save(root / f"labels/val/{name}.png", halves(0, 1, edge=edge))
    for missing in ("images/train/06", *(f"labels/train/{k:02d}" for k in (0, 1, 2, 3, 4, 5, 7))):
        (root / f"{missing}.png").unlink()
    (root / "images/train/07.png").write_bytes(b"no picture")
    content = (root / "labels/train/08.png").read_bytes()
    (root / "labels/train/08.png").write_bytes(content[: len(content) // 2])
    save(root / "labels/train/09.png", np.zeros((HEIGHT, 20), np.uint8))
    save(root / "labels/train/10.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8) + np.arange(3, dtype=np.uint8))
    cv2.imwrite(str(root / "labels/train/12.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint16))
    workspace("folder")
    unreadable = [f"raw/{name}.png" for name in ("images/train/07", "labels/train/08", "labels/train/10")]
    message = error_of(prepare, "raw (dataset.root) has 15 issues; nothing was written", *unreadable)
    assert "missing files: 8" in message and "raw/labels/train/00.png" in message and "and 3 more" in message
    assert "unreadable files: 3" in message and "raw/labels/train/12.png" in message
    assert "labels that differ from their image in size: 1" in message and f"train/09.png is 20x{HEIGHT}" in message
    assert "labels with values that are not a class: 2" in message and "raw/labels/val/a.png: 7" in message
    assert 'dataset.map: {0: null, 1: null, 7: null, "#000102": null}' in message, "to be pasted as it is"
    assert "images in train and in val: 1" in message and "raw/images/train/11.png and raw/images/val/b" in message
    assert "data/issues.txt lists all" in message and len(Path("data/issues.txt").read_text().splitlines()) == 15
    assert [path.name for path in Path("data").rglob("*.*")] == ["issues.txt"]


def test_missing_files_are_reported_by_path(workspace) -> None:
    workspace("cityscapes")
    image = "raw/leftImg8bit/train/zurich/zurich_000121_000019_leftImg8bit.png"
    label = "raw/gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png"
    for path in (image, label):
        Path(path).unlink()
    error_of(prepare, "missing files: 2", f"    {image}", f"    {label}")


def test_warnings(workspace, capsys) -> None:
    workspace("folder", dataset__classes=["a", "b", "c"], sam__checkpoint="models/custom.pth", sam__sha256="0" * 64)
    root = Path("raw")
    shutil.copy(root / "images/train/0.jpg", root / "images/train/copy.jpg")
    save(root / "labels/train/copy.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    prepare.main()
    warnings = capsys.readouterr().err
    for warning in (
        "models/custom.pth (sam.checkpoint) is missing",
        "classes that never occur in the fine labels of train: 1 (c)",
        "images of train whose fine label has no class: 1 (copy)",
        "duplicate training images: 1 (raw/images/train/0.jpg and raw/images/train/copy.jpg)",
    ):
        assert warning in warnings


def test_two_images_of_one_id(workspace) -> None:
    workspace("folder")
    Image.fromarray(photo(5)).save("raw/images/train/1.png")
    error_of(prepare, "names of several images: 1", "1: raw/images/train/1.jpg, raw/images")
    edit_params(Path(), dataset__exclude=["1"])
    assert trained_ids() == ["0", "2"]


def test_annotators_labels_need_no_fine_ones(workspace, capsys) -> None:
    """Of some training images they may be missing; of simulated weak labels' images they may not."""
    workspace("folder")
    (label,) = [path for path in Path("raw/labels/train").rglob("*.png")][:1]
    label.unlink()
    error_of(prepare, "missing files: 1")
    edit_params(Path(), weak_labels__path="drawn")
    records = prepared().train
    assert [record.has_fine_label for record in records].count(False) == 1
    assert "training images without a fine label: 1 (" in capsys.readouterr().err


def test_annotations_of_images_that_are_not_used_are_not_taken_for_others(workspace) -> None:
    """A name means an image that dataset.exclude leaves out where it agrees with that one more."""
    workspace("folder")
    for split in ("images", "labels"):
        (first,) = [path for path in Path("raw", split, "train").rglob("0.*")]
        for name in ("extra/0", "20240101-0", "a b"):
            copy = Path("raw", split, "train", f"{name}{first.suffix}")
            copy.parent.mkdir(exist_ok=True)
            pixels = np.array(Image.open(first))
            Image.fromarray(pixels if split == "labels" else pixels ^ len(name)).save(copy)
    edit_params(Path(), dataset__exclude=["extra/0", "20240101-0", "a b"])
    manifest = prepared()
    unused = load_unused()
    assert sorted(image.id for image in unused) == ["20240101-0", "a b", "extra/0"]
    names = ImageNames(manifest.train, manifest.val, unused)
    assert names.match("0.png") == names.match("0a1b2c3d-0.png", is_url=True) == "0"
    for name in ("extra/0.png", "20240101-0.png", "0a1b2c3d-a_b.png"):
        assert names.match(name, is_url=True) is None
